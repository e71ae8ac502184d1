// A mock OpenAI-compatible server: one thread, epoll, no dependencies, so that it is never what is measured.
//
//   upstream PORT          (127.0.0.1)
//
// The MODEL NAME of a request is the script of its answer:  mock-N[-sBYTES][-dUS][-tUS][-bK]
//   N  content chunks of a stream          s  bytes of text per chunk (5)     d  µs between two writes (0)
//   t  µs before the first byte (0)        b  events per write (1)
// A stream is: role chunk, N content chunks, finish chunk, usage chunk when `include_usage` is asked, [DONE]. Every content
// chunk and every whole answer holds exactly one '~', so that a client can count that nothing was lost. With d=0 the open
// streams write one event each in turn. Any path that is not a completion answers {"status":"ok"}.
#define _GNU_SOURCE
#include "connection.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define PREFIX                                                                                                         \
  "data: {\"id\":\"chatcmpl-mock0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"       \
  "\"model\":\"%s\",\"system_fingerprint\":\"fp_mock\",\"choices\":["
#define MAX_EVENTS 1024

static int poll_fd;
static struct list closed;

// ---- connections

static void hang_up(struct connection *c) {
  if (c->dead) return;
  c->dead = true;
  clear_timer(c);
  close(c->fd);
  append_to(&closed, c);
}

static void free_closed(void) {
  int kept = 0;
  for (int i = 0; i < closed.count; i++) {
    struct connection *c = closed.items[i];
    if (c->in_turn) {
      closed.items[kept++] = c;
      continue;
    }
    free(c->in.data);
    free(c->out.data);
    free(c->frame.data);
    free(c);
  }
  closed.count = kept;
}

static void await_write(struct connection *c, bool wanted) {
  if (c->awaits_write == wanted) return;
  c->awaits_write = wanted;
  struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = c};
  epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

// Send what is in `out`. True: all of it is gone and the connection lives.
static bool flush(struct connection *c) {
  struct buffer *out = &c->out;
  while (out->sent < out->length) {
    ssize_t sent = send(c->fd, out->data + out->sent, out->length - out->sent, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN) {
      await_write(c, true);
      return false;
    }
    if (sent < 0) {
      hang_up(c);
      return false;
    }
    out->sent += (size_t)sent;
  }
  out->sent = out->length = 0;
  await_write(c, false);
  if (c->close_after && c->state == IDLE) {
    hang_up(c);
    return false;
  }
  return true;
}

// ---- answers

static void put_chunk(struct buffer *b, const char *data, size_t length) {
  char size[24];
  put(b, size, (size_t)sprintf(size, "%zx\r\n", length));
  put(b, data, length);
  put(b, "\r\n", 2);
}

static void make_frame(struct connection *c) {
  const struct script *s = &c->script;
  char *text = must(malloc((size_t)s->text_bytes + 1)), *event = NULL;
  memset(text, 'a', (size_t)s->text_bytes);
  text[0] = s->text_bytes > 1 ? ' ' : '~';
  if (s->text_bytes > 1) text[1] = '~';
  text[s->text_bytes] = 0;
  int length = asprintf(
      &event, PREFIX "{\"index\":0,\"delta\":{\"content\":\"%s\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n", s->model, text);
  if (length < 0) must(NULL);
  c->frame.length = 0;
  put_chunk(&c->frame, event, (size_t)length);
  c->varying = (size_t)((char *)memchr(c->frame.data, '~', c->frame.length) - c->frame.data) + 1;
  free(event);
  free(text);
}

static void put_role(struct connection *c) {
  char event[1024];
  int length = snprintf(
      event, sizeof event,
      PREFIX "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
      c->script.model);
  put_chunk(&c->out, event, (size_t)length);
}

static void put_end(struct connection *c) {
  const struct script *s = &c->script;
  char event[1024];
  int length = snprintf(
      event, sizeof event, PREFIX "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n", s->model);
  put_chunk(&c->out, event, (size_t)length);
  if (s->usage) {
    length = snprintf(
        event, sizeof event,
        PREFIX "],\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":%ld,\"total_tokens\":%ld}}\n\n", s->model, s->chunks,
        s->chunks + 100);
    put_chunk(&c->out, event, (size_t)length);
  }
  put_chunk(&c->out, "data: [DONE]\n\n", 14);
  put(&c->out, "0\r\n\r\n", 5);
  c->state = IDLE;
}

// One write's worth of events into `out`.
static void put_events(struct connection *c) {
  if (!c->begun) {
    put_role(c);
    make_frame(c);
    c->begun = true;
  }
  for (long i = 0; i < c->script.batch && c->state == STREAMING; i++) {
    if (c->written == c->script.chunks) {
      put_end(c);
      continue;
    }
    // The text varies: some gateways give up on a stream that repeats itself.
    if (c->script.text_bytes > 2) c->frame.data[c->varying] = (char)('a' + c->written % 26);
    put(&c->out, c->frame.data, c->frame.length);
    c->written++;
  }
}

static void serve_requests(struct connection *c);

// The stream's next write is in the kernel: when is the one after it?
static void go_on(struct connection *c) {
  if (c->state != STREAMING) {
    serve_requests(c);
  } else if (c->script.pause_us) {
    c->due += (uint64_t)c->script.pause_us;
    set_timer(c);
  } else {
    take_turn(c);
  }
}

static void act(struct connection *c) {
  if (c->dead || c->state == IDLE) return;
  if (c->state == DELAYED)
    c->state = IDLE;
  else
    put_events(c);
  if (flush(c)) go_on(c);
}

static void put_json(struct connection *c, const char *body, size_t length) {
  char head[256];
  int size = sprintf(head, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n%s\r\n", length,
                     c->close_after ? "connection: close\r\n" : "");
  put(&c->out, head, (size_t)size);
  put(&c->out, body, length);
}

static void put_whole_answer(struct connection *c) {
  char body[2048];
  int length = snprintf(
      body, sizeof body,
      "{\"id\":\"chatcmpl-mock0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"%s\","
      "\"system_fingerprint\":\"fp_mock\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
      "\"content\":\"~Hello! This is a mock answer of a few dozen characters.\"},\"logprobs\":null,"
      "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":%ld,\"total_tokens\":%ld}}",
      c->script.model, c->script.chunks, c->script.chunks + 100);
  put_json(c, body, (size_t)length);
}

// Begin the answer to one request. True: it is whole and in `out`.
static bool begin_answer(struct connection *c, bool completion, bool stream) {
  static const char head[] =
      "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
  if (!completion) {
    put_json(c, "{\"status\":\"ok\"}", 15);
    return true;
  }
  c->written = 0;
  c->begun = false;
  c->due = now_us() + (uint64_t)c->script.first_us;
  if (stream) {
    put(&c->out, head, sizeof head - 1);
    c->state = STREAMING;
  } else {
    put_whole_answer(c);
    if (!c->script.first_us) return true;
    c->state = DELAYED;
  }
  if (c->script.first_us)
    set_timer(c);
  else
    act(c);
  return false;
}

// ---- requests

// The value of a top-level string or word of a JSON text, found without parsing it: our own client writes it.
static void find_value(const char *body, size_t length, const char *name, char *value, size_t room) {
  const char *at = memmem(body, length, name, strlen(name)), *end = body + length;
  size_t used = 0;
  if (at != NULL) {
    at += strlen(name);
    while (at < end && (*at == ' ' || *at == ':' || *at == '"')) at++;
    while (at < end && *at != '"' && *at != ',' && *at != '}' && used < room - 1) value[used++] = *at++;
  }
  value[used] = 0;
}

static void read_script(struct script *s, const char *body, size_t length) {
  *s = (struct script){.chunks = 16, .text_bytes = 5, .batch = 1};
  find_value(body, length, "\"model\"", s->model, sizeof s->model);
  s->usage = memmem(body, length, "\"include_usage\"", 15) != NULL;
  char *at = strstr(s->model, "mock-");
  if (at == NULL) return;
  s->chunks = strtol(at + 5, &at, 10);
  while (*at == '-' && at[1]) {
    char letter = at[1];
    long value = strtol(at + 2, &at, 10);
    if (letter == 's' && value > 0) s->text_bytes = value;
    else if (letter == 'd') s->pause_us = value;
    else if (letter == 't') s->first_us = value;
    else if (letter == 'b' && value > 0) s->batch = value;
    else return;
  }
}

// Serve the complete requests in `in`, one after the other, until one of them streams or waits.
static void serve_requests(struct connection *c) {
  while (!c->dead && c->state == IDLE) {
    char *end = c->in.length ? memmem(c->in.data, c->in.length, "\r\n\r\n", 4) : NULL;
    if (end == NULL) return;
    size_t head = (size_t)(end + 4 - c->in.data), body = 0;
    c->close_after = false;
    for (char *line = memchr(c->in.data, '\n', head); line != NULL && line + 1 < end; line = memchr(line, '\n', (size_t)(end + 2 - line))) {
      line++;
      if (!strncasecmp(line, "content-length:", 15)) body = strtoul(line + 15, NULL, 10);
      if (!strncasecmp(line, "connection: close", 17)) c->close_after = true;
      if (!strncasecmp(line, "transfer-encoding:", 18)) {  // nobody that is measured here sends a chunked request
        hang_up(c);
        return;
      }
    }
    if (c->in.length < head + body) return;
    char *path_end = memchr(c->in.data, '\r', head);
    bool completion = memmem(c->in.data, (size_t)(path_end - c->in.data), "/completions", 12) != NULL;
    char stream[8];
    read_script(&c->script, c->in.data + head, body);
    find_value(c->in.data + head, body, "\"stream\"", stream, sizeof stream);
    memmove(c->in.data, c->in.data + head + body, c->in.length - head - body);
    c->in.length -= head + body;
    if (begin_answer(c, completion, !strcmp(stream, "true")) && !flush(c)) return;
  }
}

static void receive(struct connection *c) {
  for (;;) {
    reserve(&c->in, 32768);
    size_t room = c->in.capacity - c->in.length;
    ssize_t got = recv(c->fd, c->in.data + c->in.length, room, 0);
    if (got < 0 && errno == EAGAIN) break;
    if (got <= 0) {
      hang_up(c);
      return;
    }
    c->in.length += (size_t)got;
    if ((size_t)got < room) break;
  }
  serve_requests(c);
}

static void accept_all(int listener) {
  int fd, one = 1;
  while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct connection *c = must(calloc(1, sizeof *c));
    c->fd = fd;
    c->heap_index = -1;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event);
  }
}

static int listen_on(int port) {
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
    perror("bind");
    exit(1);
  }
  return listener;
}

int main(int count, char **arguments) {
  static struct epoll_event events[MAX_EVENTS];
  if (count != 2) {
    fprintf(stderr, "usage: upstream PORT\n");
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  int listener = listen_on(atoi(arguments[1]));
  poll_fd = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
  epoll_ctl(poll_fd, EPOLL_CTL_ADD, listener, &event);
  for (;;) {
    struct timespec patience = {0, 0};
    if (turn.count == 0 && timers.count > 0) {
      uint64_t now = now_us(), wait = timers.items[0]->due > now ? timers.items[0]->due - now : 0;
      patience = (struct timespec){.tv_sec = (time_t)(wait / 1000000), .tv_nsec = (long)(wait % 1000000) * 1000};
    }
    int ready = epoll_pwait2(poll_fd, events, MAX_EVENTS, turn.count || timers.count ? &patience : NULL, NULL);
    for (int i = 0; i < ready; i++) {
      struct connection *c = events[i].data.ptr;
      if (c == NULL) {
        accept_all(listener);
        continue;
      }
      if (!c->dead && (events[i].events & EPOLLOUT) && flush(c)) go_on(c);
      if (!c->dead && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) receive(c);
    }
    for (uint64_t now = now_us(); timers.count > 0 && timers.items[0]->due <= now;) {
      struct connection *c = timers.items[0];
      clear_timer(c);
      act(c);
    }
    // Each stream writes once in a turn; those that go on come again at the end of the list, in the next turn.
    int now_in_turn = turn.count;
    for (int i = 0; i < now_in_turn; i++) {
      turn.items[i]->in_turn = false;
      act(turn.items[i]);
    }
    turn.count -= now_in_turn;
    if (now_in_turn) memmove(turn.items, turn.items + now_in_turn, (size_t)turn.count * sizeof *turn.items);
    free_closed();
  }
}
