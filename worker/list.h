/* Doubly-linked rings with the links inside the elements: nothing is ever allocated. */
#ifndef GEMMD_WORKER_LIST_H
#define GEMMD_WORKER_LIST_H

#include <stdbool.h>
#include <stddef.h>

/* A head, or an element's link.  prev == NULL: the link is in no list. */
struct list {
    struct list *prev, *next;
};

#define LIST_ENTRY(link, type, field) ((type *)(void *)((char *)(link)-offsetof(type, field)))

static inline void list_init(struct list *head)
{
    head->prev = head->next = head;
}

static inline bool list_is_empty(const struct list *head)
{
    return head->next == head;
}

static inline bool list_is_linked(const struct list *link)
{
    return link->prev != NULL;
}

static inline void list_append(struct list *head, struct list *link)
{
    link->prev = head->prev;
    link->next = head;
    head->prev->next = link;
    head->prev = link;
}

static inline void list_prepend(struct list *head, struct list *link)
{
    list_append(head->next, link);
}

/* Idempotent. */
static inline void list_unlink(struct list *link)
{
    if (!link->prev)
        return;
    link->prev->next = link->next;
    link->next->prev = link->prev;
    link->prev = link->next = NULL;
}

/* NULL when empty. */
static inline struct list *list_first(const struct list *head)
{
    return head->next == head ? NULL : head->next;
}

#endif
