// What the mock server's connections are, and the two orders in which they act: by time, and in turn.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buffer {
  char *data;
  size_t length, capacity, sent;
};

struct script {
  char model[128];
  long chunks, text_bytes, pause_us, first_us, batch;
  bool usage;
};

enum state { IDLE, STREAMING, DELAYED };  // DELAYED: a whole answer is in `out`, its time has not come

struct connection {
  int fd;
  enum state state;
  bool dead, in_turn, awaits_write, close_after;
  int heap_index;  // -1: not in the heap of timers
  uint64_t due;    // µs, when `state` acts next
  struct buffer in, out;
  struct script script;
  long written;            // content chunks
  bool begun;              // the role chunk is written
  struct buffer frame;     // the content chunk with its framing, made once
  size_t varying;          // where in `frame` the text varies
};

// Connections in some order: timers (a binary heap on `due`), those whose turn it is, and the closed ones.
struct list {
  struct connection **items;
  int count, capacity;
};

extern struct list timers, turn;

uint64_t now_us(void);
void *must(void *memory);  // the memory, or the end of the process
void append_to(struct list *list, struct connection *c);
void reserve(struct buffer *b, size_t more);
void put(struct buffer *b, const char *data, size_t length);
void set_timer(struct connection *c);  // acts at `due`
void clear_timer(struct connection *c);
void take_turn(struct connection *c);
