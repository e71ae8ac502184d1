// A load generator for OpenAI-compatible endpoints: one thread, epoll, no dependencies. Prints one line of JSON.
//
//   load -u http://127.0.0.1:PORT/PATH [-c connections] [-d seconds] [-w warm-up seconds] [-m model] [-k key] [-S (stream)]
//        [-p prompt bytes] [-r requests/s (open loop)] [-X expected status]
//
// An answer is an error unless its status is the expected one and, when that is 200, it held exactly the marks ('~') that
// the model's name promises (see upstream.c) and, streamed, [DONE]. In the open loop a request's latency counts from the
// instant at which it was due. `all_*` counts also what happened during the warm-up; the other figures do not.
#define _GNU_SOURCE
#include "answer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_EVENTS 1024
#define MAX_OVERDUE (1 << 20)

struct client {
  int fd;  // -1: not connected
  bool busy;
  uint64_t began, last_mark;
  struct answer answer;
};

struct totals {
  uint64_t ok, errors, marks, events, reads, bytes, connections, all_ok, all_marks;
  uint64_t wrong_status, wrong_marks, no_done, broken;
  int last_status;
};

static struct {
  char *url, *key, *model;
  int connections, status;
  double seconds, warm_up, rate;
  long prompt_bytes;
  bool stream;
} asked = {.key = "sk-bench", .model = "mock-64", .connections = 1, .status = 200, .seconds = 3, .warm_up = 0.3, .prompt_bytes = 400};

static struct sockaddr_in address;
static char *request;
static size_t request_length;
static long promised_marks;
static int poll_fd;
static uint64_t warm_until, end_at;
static struct histogram latency, first_mark, gap;
static struct totals totals;
static char error_body[256];
static uint64_t *overdue;  // open loop: instants at which requests were due that no client was free for
static size_t overdue_head, overdue_tail;

static uint64_t now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static bool counts(uint64_t t) { return t >= warm_until && t <= end_at; }

static void disconnect(struct client *c) {
  close(c->fd);
  c->fd = -1;
}

static bool connect_client(struct client *c) {
  int one = 1;
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
    totals.broken++;
    disconnect(c);
    return false;
  }
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
  epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &event);
  totals.connections++;
  return true;
}

static void begin(struct client *c, uint64_t due) {
  if (c->fd < 0 && !connect_client(c)) {
    totals.errors++;
    return;
  }
  answer_reset(&c->answer, asked.stream);
  c->busy = true;
  c->began = due;
  c->last_mark = 0;
  for (size_t sent = 0; sent < request_length;) {
    ssize_t done = send(c->fd, request + sent, request_length - sent, MSG_NOSIGNAL);
    if (done <= 0) return;  // the end of the connection is seen when it is read
    sent += (size_t)done;
  }
}

static void begin_next(struct client *c) {
  uint64_t t = now_us();
  if (t >= end_at) return;
  if (asked.rate <= 0)
    begin(c, t);
  else if (overdue_head < overdue_tail)
    begin(c, overdue[overdue_head++ % MAX_OVERDUE]);
}

static bool is_good(const struct client *c, bool complete) {
  const struct answer *a = &c->answer;
  if (!complete) totals.broken++;
  else if (a->status != asked.status) totals.wrong_status++, totals.last_status = a->status;
  else if (asked.status != 200) return true;
  else if (promised_marks >= 0 && a->marks != promised_marks) totals.wrong_marks++;
  else if (asked.stream && !a->done) totals.no_done++;
  else return true;
  return false;
}

static void end_request(struct client *c, bool complete) {
  uint64_t t = now_us();
  bool good = is_good(c, complete);
  c->busy = false;
  if (good) totals.all_ok++;
  if (counts(t)) {
    totals.reads += c->answer.reads;
    if (good) {
      totals.ok++;
      histogram_add(&latency, t - c->began);
    } else {
      totals.errors++;
    }
  }
  if (!complete || c->answer.closes) disconnect(c);
  if (!good && t - c->began < 2000) usleep(200);  // a gateway that fails at once is not to be hammered
  begin_next(c);
}

// What one read brought, in marks and events.
static void count_body(struct client *c, const struct piece *piece, uint64_t t) {
  if (t >= warm_until) {
    totals.bytes += piece->bytes;
    totals.events += piece->events;
  }
  if (c->answer.status != asked.status && !error_body[0]) {
    size_t length = piece->bytes < sizeof error_body - 1 ? piece->bytes : sizeof error_body - 1;
    for (size_t i = 0; i < length; i++) {
      char letter = piece->data[i];
      error_body[i] = letter == '"' || letter == '\\' || (unsigned char)letter < 32 || letter == 127 ? ' ' : letter;
    }
  }
  if (!piece->marks) return;
  totals.all_marks += piece->marks;
  if (counts(t)) {
    totals.marks += piece->marks;
    if (c->last_mark)
      histogram_add(&gap, t - c->last_mark);
    else
      histogram_add(&first_mark, t - c->began);
  }
  c->last_mark = t;
}

static void read_client(struct client *c) {
  static char bytes[262144];
  ssize_t got = recv(c->fd, bytes, sizeof bytes, MSG_DONTWAIT);
  if (got < 0 && errno == EAGAIN) return;
  if (!c->busy) {
    if (got <= 0) disconnect(c);
    return;
  }
  if (got <= 0) {
    end_request(c, got == 0 && answer_ends_with_connection(&c->answer));
    return;
  }
  uint64_t t = now_us();
  const char *at = bytes, *end = bytes + got;
  c->answer.reads++;
  while (at < end) {
    struct piece piece;
    at = answer_feed(&c->answer, at, end, &piece);
    if (piece.bytes) count_body(c, &piece, t);
    if (c->answer.phase == COMPLETE || c->answer.phase == MALFORMED) {
      end_request(c, c->answer.phase == COMPLETE);
      return;  // nothing is pipelined, so nothing follows
    }
  }
}

static void make_request(const char *host, int port, const char *path) {
  char *prompt = malloc((size_t)asked.prompt_bytes + 1), *body;
  for (long i = 0; i < asked.prompt_bytes; i++) prompt[i] = i % 6 == 5 ? ' ' : (char)('a' + i % 26);
  prompt[asked.prompt_bytes] = 0;
  int length = asprintf(
      &body,
      "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful assistant.\"},"
      "{\"role\":\"user\",\"content\":\"%s\"}],\"temperature\":0.7,\"max_tokens\":256,\"stream\":%s}",
      asked.model, prompt, asked.stream ? "true,\"stream_options\":{\"include_usage\":true}" : "false");
  int whole = asprintf(
      &request,
      "POST %s HTTP/1.1\r\nHost: %s:%d\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nAccept: */*\r\n"
      "User-Agent: load/1\r\nContent-Length: %d\r\n\r\n%s",
      path, host, port, asked.key, length, body);
  request_length = (size_t)whole;
  free(body);
  free(prompt);
}

static double cpu_seconds(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void print_result(double seconds, double cpu) {
  printf("{\"secs\":%.3f,\"ok\":%lu,\"errors\":%lu,\"rps\":%.1f,", seconds, totals.ok, totals.errors, (double)totals.ok / seconds);
  printf("\"p50_us\":%.0f,\"p90_us\":%.0f,\"p99_us\":%.0f,\"max_us\":%lu,\"mean_us\":%.1f,", histogram_quantile(&latency, .5),
         histogram_quantile(&latency, .9), histogram_quantile(&latency, .99), latency.max,
         latency.count ? latency.sum / (double)latency.count : 0);
  printf("\"ttft_p50_us\":%.0f,\"ttft_p99_us\":%.0f,", histogram_quantile(&first_mark, .5), histogram_quantile(&first_mark, .99));
  printf("\"gap_p50_us\":%.0f,\"gap_p99_us\":%.0f,", histogram_quantile(&gap, .5), histogram_quantile(&gap, .99));
  printf("\"chunks\":%lu,\"chunks_s\":%.0f,\"all_ok\":%lu,\"all_chunks\":%lu,", totals.marks, (double)totals.marks / seconds,
         totals.all_ok, totals.all_marks);
  printf("\"events\":%lu,\"reads\":%lu,\"mb_s\":%.2f,\"conns\":%lu,\"load_cpu\":%.2f,", totals.events, totals.reads,
         (double)totals.bytes / seconds / 1e6, totals.connections, cpu / seconds);
  printf("\"e_status\":%lu,\"last_status\":%d,\"e_marks\":%lu,\"e_done\":%lu,\"e_conn\":%lu,\"errbody\":\"%s\"}\n",
         totals.wrong_status, totals.last_status, totals.wrong_marks, totals.no_done, totals.broken, error_body);
}

static bool read_arguments(int count, char **arguments) {
  for (int option; (option = getopt(count, arguments, "u:c:d:w:m:k:Sp:r:X:")) != -1;) switch (option) {
      case 'u': asked.url = optarg; break;
      case 'c': asked.connections = atoi(optarg); break;
      case 'd': asked.seconds = atof(optarg); break;
      case 'w': asked.warm_up = atof(optarg); break;
      case 'm': asked.model = optarg; break;
      case 'k': asked.key = optarg; break;
      case 'S': asked.stream = true; break;
      case 'p': asked.prompt_bytes = atol(optarg); break;
      case 'r': asked.rate = atof(optarg); break;
      case 'X': asked.status = atoi(optarg); break;
      default: return false;
    }
  return asked.url != NULL && asked.connections > 0;
}

int main(int count, char **arguments) {
  static struct epoll_event events[MAX_EVENTS];
  char host[128], path[1024] = "/";
  int port = 0;
  if (!read_arguments(count, arguments) || sscanf(asked.url, "http://%127[^:/]:%d%1023s", host, &port, path) < 2) {
    fprintf(stderr, "usage: load -u http://ADDRESS:PORT/PATH [...], see load.c\n");
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  inet_pton(AF_INET, host, &address.sin_addr);
  char *script = strstr(asked.model, "mock-");
  promised_marks = !asked.stream ? 1 : script ? atol(script + 5) : -1;
  make_request(host, port, path);
  poll_fd = epoll_create1(0);
  overdue = malloc(MAX_OVERDUE * sizeof *overdue);
  struct client *clients = calloc((size_t)asked.connections, sizeof *clients);
  uint64_t began = now_us();
  warm_until = began + (uint64_t)(asked.warm_up * 1e6);
  end_at = warm_until + (uint64_t)(asked.seconds * 1e6);
  for (int i = 0; i < asked.connections; i++) {
    clients[i].fd = -1;
    connect_client(&clients[i]);
    if (asked.rate <= 0) begin(&clients[i], now_us());
  }
  double next_due = (double)began, cpu = 0;
  bool warm = false;
  for (uint64_t t; (t = now_us()) < end_at;) {
    if (!warm && t >= warm_until) cpu = cpu_seconds(), warm = true;
    struct timespec patience = {0, 5000000};
    if (asked.rate > 0) {
      for (; next_due <= (double)t; next_due += 1e6 / asked.rate) overdue[overdue_tail++ % MAX_OVERDUE] = (uint64_t)next_due;
      for (int i = 0; i < asked.connections && overdue_head < overdue_tail; i++)
        if (!clients[i].busy) begin(&clients[i], overdue[overdue_head++ % MAX_OVERDUE]);
      patience.tv_nsec = (long)((next_due - (double)t) * 1000) % 1000000000L;
    }
    int ready = epoll_pwait2(poll_fd, events, MAX_EVENTS, &patience, NULL);
    for (int i = 0; i < ready; i++) {
      struct client *c = events[i].data.ptr;
      if (c->fd >= 0) read_client(c);
    }
  }
  uint64_t t = now_us() < end_at ? now_us() : end_at;
  print_result((double)(t - warm_until) / 1e6, cpu_seconds() - cpu);
  return 0;
}
