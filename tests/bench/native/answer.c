// See answer.h.
#define _GNU_SOURCE
#include "answer.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

void answer_reset(struct answer *a, bool stream) {
  memset(a, 0, offsetof(struct answer, head));  // the head's own bytes need no clearing
  a->phase = HEAD;
  a->stream = stream;
}

bool answer_ends_with_connection(const struct answer *a) { return a->phase == BODY && a->left < 0; }

static const char *read_head(struct answer *a, const char *at, const char *end) {
  size_t known = a->head_length, room = sizeof a->head - 1 - known, more = (size_t)(end - at);
  if (more > room) more = room;
  memcpy(a->head + known, at, more);
  a->head_length += more;
  char *stop = memmem(a->head, a->head_length, "\r\n\r\n", 4);
  if (stop == NULL) {
    if (more == room) a->phase = MALFORMED;
    return end;
  }
  *stop = 0;
  bool chunked = false;
  long length = -1;
  a->status = a->head_length > 12 ? atoi(a->head + 9) : 0;
  for (char *line = a->head; (line = strchr(line, '\n')) != NULL;) {
    line++;
    if (!strncasecmp(line, "content-length:", 15)) length = atol(line + 15);
    if (!strncasecmp(line, "transfer-encoding: chunked", 26)) chunked = true;
    if (!strncasecmp(line, "connection: close", 17)) a->closes = true;
  }
  a->phase = chunked ? SIZE : length == 0 ? COMPLETE : BODY;
  a->left = chunked ? 0 : length;
  if (!chunked && length < 0) a->closes = true;
  return at + (size_t)(stop + 4 - a->head) - known;
}

static void look_for_done(struct answer *a, const char *data, size_t length) {
  char window[64];
  size_t last = length < 24 ? length : 24;
  memcpy(window, a->tail, a->tail_length);
  memcpy(window + a->tail_length, data + length - last, last);
  size_t all = a->tail_length + last;
  if (memmem(window, all, "[DONE]", 6)) a->done = true;
  a->tail_length = all < 12 ? all : 12;
  memcpy(a->tail, window + all - a->tail_length, a->tail_length);
}

static const char *read_body(struct answer *a, const char *at, const char *end, struct piece *piece) {
  size_t length = (size_t)(end - at);
  if (a->left >= 0 && (size_t)a->left < length) length = (size_t)a->left;
  piece->data = at;
  piece->bytes = length;
  for (const char *p = at; (p = memchr(p, '~', (size_t)(at + length - p))) != NULL; p++) piece->marks++;
  if (a->stream) {
    for (const char *p = at; (p = memmem(p, (size_t)(at + length - p), "data:", 5)) != NULL; p += 5) piece->events++;
    look_for_done(a, at, length);
  }
  a->marks += (long)piece->marks;
  if (a->left >= 0) a->left -= (long)length;
  return at + length;
}

static int hex_digit(char letter) {
  if (letter >= '0' && letter <= '9') return letter - '0';
  letter |= 32;
  return letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
}

// One byte of a chunk's framing.
static void read_framing(struct answer *a, char letter) {
  switch (a->phase) {
    case SIZE:
    case EXTENSION:
      if (letter == '\n') a->phase = a->left ? DATA : TRAILER;
      else if (letter == ';') a->phase = EXTENSION;
      else if (letter != '\r' && a->phase == SIZE) {
        int digit = hex_digit(letter);
        if (digit < 0 || a->left > (1L << 40)) a->phase = MALFORMED;
        else a->left = a->left * 16 + digit;
      }
      break;
    case DATA_END:
      if (letter == '\n') a->phase = SIZE;
      break;
    case TRAILER:
      if (letter == '\n') a->phase = COMPLETE;
      else if (letter != '\r') a->phase = TRAILER_LINE;
      break;
    case TRAILER_LINE:
      if (letter == '\n') a->phase = TRAILER;
      break;
    default:
      break;
  }
}

const char *answer_feed(struct answer *a, const char *at, const char *end, struct piece *piece) {
  *piece = (struct piece){0};
  if (a->phase == HEAD) return read_head(a, at, end);
  if (a->phase == BODY) {
    at = read_body(a, at, end, piece);
    if (a->left == 0) a->phase = COMPLETE;
    return at;
  }
  if (a->phase == DATA) {
    at = read_body(a, at, end, piece);
    if (a->left == 0) a->phase = DATA_END;
    return at;
  }
  while (at < end && a->phase != DATA && a->phase != COMPLETE && a->phase != MALFORMED) read_framing(a, *at++);
  return at;
}

void histogram_add(struct histogram *h, uint64_t value) {
  uint64_t power = 0;
  while (value >> power >= 128) power++;
  h->slots[power * 64 + (value >> power)]++;
  h->count++;
  h->sum += (double)value;
  if (value > h->max) h->max = value;
}

double histogram_quantile(const struct histogram *h, double quantile) {
  if (!h->count) return 0;
  uint64_t rank = (uint64_t)(quantile * (double)(h->count - 1)), passed = 0;
  for (uint64_t slot = 0; slot < sizeof h->slots / sizeof *h->slots; slot++) {
    passed += h->slots[slot];
    if (passed <= rank) continue;
    if (slot < 128) return (double)slot;
    uint64_t power = slot / 64 - 1;  // slots 64..127 of each further power of two
    return (double)((slot - power * 64) << power) + (double)((1ull << power) / 2);
  }
  return (double)h->max;
}
