// One HTTP/1.1 answer as the load generator reads it, any split of bytes; and histograms of microseconds.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum phase { HEAD, BODY, SIZE, EXTENSION, DATA, DATA_END, TRAILER, TRAILER_LINE, COMPLETE, MALFORMED };

struct answer {
  enum phase phase;
  bool stream, closes, done;  // done: [DONE] was seen
  int status;
  long left;  // of the body (-1: until the connection ends) or of the chunk
  long marks;
  uint64_t reads;
  char tail[16];  // the body's last bytes: [DONE] may be cut in two
  size_t tail_length;
  size_t head_length;
  char head[16384];
};

// A part of the body that one call of answer_feed passed over.
struct piece {
  const char *data;
  size_t bytes;
  uint64_t marks, events;
};

void answer_reset(struct answer *a, bool stream);
// Reads from `at`, returns where it stopped: at `end`, behind a piece of the body, or at the answer's end.
const char *answer_feed(struct answer *a, const char *at, const char *end, struct piece *piece);
bool answer_ends_with_connection(const struct answer *a);

// 64 steps per power of two: 1.6 % resolution.
struct histogram {
  uint64_t slots[64 * 40], count, max;
  double sum;
};

void histogram_add(struct histogram *h, uint64_t value);
double histogram_quantile(const struct histogram *h, double quantile);
