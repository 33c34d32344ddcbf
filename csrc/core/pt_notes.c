#include "pt_notes.h"

#include "pt_assert.h"

#if PT_NOTES

#define NOTE_BYTES 65536 /* of the messages that share a note, about */
#define NOTES_SIZE (PT_LINK_NOTES * (uint32_t)sizeof(pt_note))

/* 1 when the messages of this turn need a note of their own. */
static int needs_note(const pt_notes *notes, uint32_t turn)
{
    uint32_t covered = notes->end - notes->start;
    return notes->count == 0 ||
           (covered >= notes->least && (covered >= NOTE_BYTES || notes->turn != turn));
}

/* 1 when bytes of the note are among the last `waiting` ones before position. */
static int is_waiting(const pt_note *note, uint32_t position, uint32_t waiting)
{
    return position - note->end < waiting;
}

void pt_notes_init(pt_notes *notes)
{
    notes->list = &notes->only;
    notes->count = 0;
    notes->room = 1;
    notes->start = 0;
    notes->end = 0;
    notes->turn = 0;
    notes->least = 0;
}

void pt_notes_drop(pt_notes *notes, pt_pool *pool)
{
    PT_ASSERT(notes->count <= notes->room);
    PT_ASSERT((notes->room == 1) == (notes->list == &notes->only));

    if (notes->room != 1)
        pt_pool_release(pool, (uint8_t *)notes->list, NOTES_SIZE);
    notes->list = &notes->only;
    notes->count = 0;
    notes->room = 1;
}

int pt_notes_need_room(pt_notes *notes, pt_pool *pool, uint32_t turn)
{
    PT_ASSERT(notes->room == 1 || notes->room == PT_LINK_NOTES);
    PT_ASSERT(notes->count <= notes->room);

    if (notes->count != notes->room || !needs_note(notes, turn))
        return 0;
    if (notes->room != 1)
        return 1;
    uint8_t *buffer = pt_pool_acquire(pool, NOTES_SIZE);
    if (buffer == NULL)
        return 1; /* the only one serves on */
    notes->list = (pt_note *)(void *)buffer;
    notes->list[0] = notes->only;
    notes->room = PT_LINK_NOTES;
    PT_ASSERT(notes->count < notes->room);
    return 0;
}

void pt_notes_make_room(pt_notes *notes, uint32_t position, uint32_t waiting)
{
    PT_ASSERT(notes->count == notes->room);
    uint8_t gone = 0, kept = 0;
    while (gone < notes->count && !is_waiting(&notes->list[gone], position, waiting))
        gone++;
    notes->least = waiting / (PT_LINK_NOTES / 2);
    int paired = gone < PT_LINK_NOTES / 2;
    for (uint8_t index = gone; index < notes->count; index++) {
        if (paired && ((index - gone) & 1)) {
            notes->list[kept - 1].count += notes->list[index].count;
            notes->list[kept - 1].end = notes->list[index].end;
        } else {
            notes->list[kept++] = notes->list[index];
        }
    }
    PT_ASSERT(kept <= notes->count);
    PT_ASSERT(kept < PT_LINK_NOTES);
    notes->count = kept;
}

void pt_notes_add(pt_notes *notes, uint32_t turn, uint32_t end, uint32_t count)
{
    if (notes->count != notes->room && needs_note(notes, turn)) {
        notes->turn = turn;
        notes->start = notes->end;
        notes->list[notes->count++].count = 0;
    }
    PT_ASSERT(notes->count != 0 && notes->count <= notes->room);
    pt_note *note = &notes->list[notes->count - 1];
    note->count += count;
    note->end = end;
    notes->end = end;
}

uint32_t pt_notes_count(const pt_notes *notes, uint32_t position, uint32_t waiting)
{
    PT_ASSERT(notes->list != NULL);
    PT_ASSERT(notes->count <= notes->room);

    uint32_t count = 0;
    for (uint8_t index = notes->count; index-- != 0;) {
        if (!is_waiting(&notes->list[index], position, waiting))
            break;
        count += notes->list[index].count;
    }
    return count;
}

#else

void pt_notes_init(pt_notes *notes)
{
    notes->count = 0;
    notes->room = 0;
}

void pt_notes_drop(pt_notes *notes, pt_pool *pool)
{
    (void)notes;
    (void)pool;
}

int pt_notes_need_room(pt_notes *notes, pt_pool *pool, uint32_t turn)
{
    (void)notes;
    (void)pool;
    (void)turn;
    return 0;
}

void pt_notes_make_room(pt_notes *notes, uint32_t position, uint32_t waiting)
{
    (void)notes;
    (void)position;
    (void)waiting;
}

void pt_notes_add(pt_notes *notes, uint32_t turn, uint32_t end, uint32_t count)
{
    (void)notes;
    (void)turn;
    (void)end;
    (void)count;
}

uint32_t pt_notes_count(const pt_notes *notes, uint32_t position, uint32_t waiting)
{
    (void)notes;
    (void)position;
    (void)waiting;
    return 0;
}

#endif
