/* Notes of what a link reported as sent: which of its messages the other side's system has not
 * acknowledged. A note covers messages that were reported one after the other, and says where in
 * the stream the last of them ended. The system tells how many bytes, the last ones, wait for an
 * acknowledgement; the notes tell whose bytes those are.
 *
 * One note lies in the struct. When a second one is wanted PT_LINK_NOTES are borrowed from the pool
 * until pt_notes_drop(). When even these are full, notes are joined, which tells more messages to
 * be unacknowledged than need be, never fewer. Positions are the low 32 bits of a count of bytes.
 *
 * PT_NOTES 0 leaves them out, for builds whose worlds never tell what is acknowledged (the classic
 * ones: there a message that was sent is one that was acknowledged).
 */
#ifndef PT_NOTES_H
#define PT_NOTES_H

#include <stdint.h>

#include "pt_config.h"
#include "pt_pool.h"

typedef struct pt_note {
    uint32_t count; /* messages */
    uint32_t end;   /* position behind the last one */
} pt_note;

typedef struct pt_notes {
    pt_note *list;  /* oldest first; &only, or the borrowed ones */
    uint32_t start; /* where the newest note begins */
    uint32_t end;   /* where it ends, and the next one begins */
    uint32_t turn;  /* the turn that made it */
    uint32_t least; /* bytes that it must cover before another is begun */
    pt_note only;
    uint8_t count;
    uint8_t room; /* 1, or PT_LINK_NOTES */
} pt_notes;

/* Make ready: no notes, nothing borrowed. */
void pt_notes_init(pt_notes *notes);

/* Forget all, and give back what was borrowed. May be called again. */
void pt_notes_drop(pt_notes *notes, pt_pool *pool);

/* 1 when messages of this turn would need a note for which there is no room; may borrow it first.
 * Then pt_notes_make_room() is to be called before pt_notes_add(). */
int pt_notes_need_room(pt_notes *notes, pt_pool *pool, uint32_t turn);

/* Forget the notes that are acknowledged; where most wait, join each two, and let new ones cover as
 * much. So the system is asked once for half of the notes at most, and each covers about an eighth
 * of what waits. position: bytes that the system took; waiting: of these, the last that are not
 * acknowledged. */
void pt_notes_make_room(pt_notes *notes, uint32_t position, uint32_t waiting);

/* Remember that so many messages, which end at this position, were reported as sent in this turn.
 * Those of one turn share a note, up to about a write. */
void pt_notes_add(pt_notes *notes, uint32_t turn, uint32_t end, uint32_t count);

/* Messages of the notes that hold one of the last `waiting` bytes before position; the last ones of
 * all. */
uint32_t pt_notes_count(const pt_notes *notes, uint32_t position, uint32_t waiting);

#endif
