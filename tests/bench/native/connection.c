// Buffers, the heap of timers and the list of turns of the mock server.
#define _GNU_SOURCE
#include "connection.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct list timers, turn;

uint64_t now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

void *must(void *memory) {
  if (memory == NULL) {
    perror("memory");
    exit(1);
  }
  return memory;
}

void append_to(struct list *list, struct connection *c) {
  if (list->count == list->capacity) {
    list->capacity = list->capacity ? list->capacity * 2 : 1024;
    list->items = must(realloc(list->items, (size_t)list->capacity * sizeof *list->items));
  }
  list->items[list->count++] = c;
}

void reserve(struct buffer *b, size_t more) {
  if (b->length + more > b->capacity) {
    b->capacity = (b->length + more) * 2 + 1024;
    b->data = must(realloc(b->data, b->capacity));
  }
}

void put(struct buffer *b, const char *data, size_t length) {
  reserve(b, length);
  memcpy(b->data + b->length, data, length);
  b->length += length;
}

// ---- timers

static void heap_swap(int a, int b) {
  struct connection *kept = timers.items[a];
  timers.items[a] = timers.items[b];
  timers.items[b] = kept;
  timers.items[a]->heap_index = a;
  timers.items[b]->heap_index = b;
}

static void heap_up(int i) {
  for (int parent; i > 0 && timers.items[i]->due < timers.items[parent = (i - 1) / 2]->due; i = parent) heap_swap(i, parent);
}

static void heap_down(int i) {
  for (;;) {
    int first = i;
    for (int child = 2 * i + 1; child <= 2 * i + 2 && child < timers.count; child++)
      if (timers.items[child]->due < timers.items[first]->due) first = child;
    if (first == i) return;
    heap_swap(i, first);
    i = first;
  }
}

void set_timer(struct connection *c) {
  append_to(&timers, c);
  c->heap_index = timers.count - 1;
  heap_up(c->heap_index);
}

void clear_timer(struct connection *c) {
  int i = c->heap_index;
  if (i < 0) return;
  heap_swap(i, timers.count - 1);
  timers.count--;
  c->heap_index = -1;
  if (i < timers.count) {
    heap_up(i);
    heap_down(i);
  }
}

void take_turn(struct connection *c) {
  if (!c->in_turn) append_to(&turn, c);
  c->in_turn = true;
}
