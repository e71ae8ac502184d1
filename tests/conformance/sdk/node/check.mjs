// OpenAI's Node SDK against one dialect: node check.mjs BASE_URL KEY DIALECT. Prints one JSON object: check -> what came
// of it. What is right is said by the test that starts this, so that a check cannot pass by not being made.
import OpenAI from "openai";

const [baseURL, apiKey, dialect] = process.argv.slice(2);
const messages = [{ role: "user", content: "say something" }];
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 20_000 });
const model = (script) => `${dialect}-${script}`;
const add = {
  type: "function",
  function: {
    name: "add",
    description: "adds",
    parameters: {
      type: "object",
      properties: { a: { type: "integer" }, b: { type: "integer" } },
      required: ["a", "b"],
    },
  },
};
const schema = {
  type: "object",
  properties: { city: { type: "string" }, people: { type: "integer" } },
  required: ["city", "people"],
  additionalProperties: false,
};

const problem = (error) => ({
  name: error.constructor.name,
  status: error.status ?? null,
  code: error.code ?? null,
  param: error.param ?? null,
  request: Boolean(error.requestID),
});

async function failing(work) {
  try {
    await work();
  } catch (error) {
    return problem(error);
  }
  return null;
}

const checks = {
  async whole() {
    const answer = await client.chat.completions.create({ model: model("words"), messages });
    const [choice] = answer.choices;
    return [choice.message.content, choice.finish_reason, answer.usage.completion_tokens, answer.model];
  },

  async streamed() {
    const asked = { model: model("words"), messages, stream: true, stream_options: { include_usage: true } };
    let text = "";
    let usage = null;
    const finishes = [];
    for await (const chunk of await client.chat.completions.create(asked)) {
      text += chunk.choices[0]?.delta.content ?? "";
      if (chunk.choices[0]?.finish_reason) finishes.push(chunk.choices[0].finish_reason);
      usage = chunk.usage ?? usage;
    }
    return [text, finishes, usage.prompt_tokens, usage.completion_tokens];
  },

  async tools() {
    const asked = { model: model("words"), messages, tools: [add] };
    const [choice] = (await client.chat.completions.create(asked)).choices;
    const [call] = choice.message.tool_calls;
    const runner = client.chat.completions.stream(asked);
    const streamed = (await runner.finalChatCompletion()).choices[0];
    const result = { role: "tool", tool_call_id: call.id, content: "3" };
    const history = [...messages, choice.message, result];
    const last = await client.chat.completions.create({ ...asked, messages: history });
    return [
      [call.function.name, JSON.parse(call.function.arguments), choice.finish_reason],
      [
        streamed.message.tool_calls[0].function.name,
        JSON.parse(streamed.message.tool_calls[0].function.arguments),
        streamed.finish_reason,
      ],
      last.choices[0].message.content,
    ];
  },

  async structured() {
    const response_format = { type: "json_schema", json_schema: { name: "city", schema, strict: true } };
    const asked = { model: model("json"), messages, response_format };
    const parsed = (await client.chat.completions.parse(asked)).choices[0].message.parsed;
    const runner = client.chat.completions.stream(asked);
    return [parsed, JSON.parse(await runner.finalContent())];
  },

  async aborted() {
    const stream = await client.chat.completions.create({ model: model("endless"), messages, stream: true });
    let seen = 0;
    for await (const chunk of stream) {
      seen += chunk.choices[0]?.delta.content ? 1 : 0;
      if (seen === 3) break; // leaving the loop aborts the request
    }
    const controller = new AbortController();
    const options = { signal: controller.signal };
    const waiting = client.chat.completions.create({ model: model("mute"), messages }, options);
    setTimeout(() => controller.abort(), 300);
    return [seen, (await failing(() => waiting)).name];
  },

  async embeddings() {
    if (!["openai", "ollama"].includes(dialect)) return null;
    const short = await client.embeddings.create({ model: model("words"), input: ["one", "two"] }); // asks for base64
    const floats = await client.embeddings.create({ model: model("words"), input: "one", encoding_format: "float" });
    return [short.data.map((one) => [one.index, one.embedding]), floats.data[0].embedding, short.usage.prompt_tokens];
  },

  async errors() {
    const ask = (script, more = {}, options = {}) =>
      failing(() => client.chat.completions.create({ model: model(script), messages, ...more }, options));
    const found = {};
    for (const script of ["fail-400", "fail-401", "fail-429", "fail-500"]) found[script] = await ask(script);
    found.unknown = await failing(() => client.chat.completions.create({ model: "nothing", messages }));
    found.parameter = await ask("words", { no_such_parameter: 1 });
    found.key = await failing(() => client.withOptions({ apiKey: "sk-wrong" }).models.list());
    found.timeout = await ask("mute", {}, { timeout: 300 });
    found.cut = await failing(async () => {
      for await (const _ of await client.chat.completions.create({ model: model("cut"), messages, stream: true }));
    });
    return found;
  },

  async models() {
    const names = [];
    for await (const one of client.models.list()) names.push(one.id);
    return names.includes(model("words"));
  },
};

const results = {};
for (const [name, check] of Object.entries(checks)) {
  try {
    results[name] = await check();
  } catch (error) {
    results[name] = { thrown: `${error.constructor.name}: ${error.message}` };
  }
}
console.log(JSON.stringify(results));
