/* The notes of what is not acknowledged, against a plain list of where each message ended. */
#include "pt_notes.h"

#include "check.h"
#include "memory.h"

#define MESSAGES 4000u

static pt_notes notes;
static pt_pool *pool;
static memory_account account;
static uint32_t ends[MESSAGES]; /* where each message ended */
static uint32_t position;       /* bytes that the system took */

static void begin(uint32_t start)
{
    static const pt_pool_class classes[] = {{256, 4, 0}};
    pool = memory_open_pool(&account, classes, 1, 0);
    position = start;
    pt_notes_init(&notes);
    notes.start = notes.end = start;
}

static void end(void)
{
    pt_notes_drop(&notes, pool);
    pt_notes_drop(&notes, pool);
    CHECK_EQUAL(notes.count, 0);
    CHECK_EQUAL(memory_lent(pool), 0);
    memory_close_pool(pool, &account);
}

/* One message of so many bytes is reported as sent; waiting: of all bytes that were taken, the last
 * that are not acknowledged. 1 when the system had to be asked. */
static int sent_one(uint32_t number, uint32_t turn, uint32_t len, uint32_t waiting)
{
    position += len;
    ends[number] = position;
    int asks = pt_notes_need_room(&notes, pool, turn);
    if (asks)
        pt_notes_make_room(&notes, position, waiting);
    pt_notes_add(&notes, turn, position, 1);
    return asks;
}

/* Of the first `sent` messages those that hold one of the last `waiting` bytes. */
static uint32_t count_waiting(uint32_t sent, uint32_t waiting)
{
    uint32_t count = 0;
    while (count < sent && position - ends[sent - 1 - count] < waiting)
        count++;
    return count;
}

static void one_note_borrows_nothing_and_all_are_given_back(void)
{
    begin(0);
    sent_one(0, 1, 100, 100);
    sent_one(1, 1, 100, 200); /* of the same turn */
    CHECK_EQUAL(notes.count, 1);
    CHECK_EQUAL(memory_lent(pool), 0);
    CHECK_EQUAL(pt_notes_count(&notes, position, 0), 0);
    CHECK_EQUAL(pt_notes_count(&notes, position, 1), 2);
    CHECK_EQUAL(sent_one(2, 2, 100, 300), 0);
    CHECK_EQUAL(notes.count, 2);
    CHECK_EQUAL(memory_lent(pool), 1);
    CHECK_EQUAL(pt_notes_count(&notes, position, 100), 1);
    CHECK_EQUAL(pt_notes_count(&notes, position, 101), 3);
    pt_notes_drop(&notes, pool);
    CHECK_EQUAL(memory_lent(pool), 0);
    CHECK_EQUAL(pt_notes_count(&notes, position, 300), 0);
    sent_one(3, 3, 100, 100); /* and go on */
    CHECK_EQUAL(pt_notes_count(&notes, position, 400), 1);
    end();
}

static void as_many_writes_as_there_are_notes_are_told_exactly(void)
{
    begin(0xFFFFFF00u); /* positions wrap */
    for (uint32_t number = 0; number < PT_LINK_NOTES; number++)
        CHECK_EQUAL(sent_one(number, number, 70, 70 * (number + 1)), 0);
    for (uint32_t waiting = 0; waiting <= 70u * PT_LINK_NOTES; waiting++)
        CHECK_EQUAL(pt_notes_count(&notes, position, waiting),
                    count_waiting(PT_LINK_NOTES, waiting));
    CHECK_EQUAL(sent_one(PT_LINK_NOTES, PT_LINK_NOTES, 70, 70), 1);
    CHECK_EQUAL(notes.count, 1); /* the others were acknowledged */
    CHECK_EQUAL(pt_notes_count(&notes, position, 70), 1);
    end();
}

/* Whatever is sent and acknowledged: never fewer than there are, none when nothing waits. dry:
 * there is no memory for more than one note. */
static void check_any_course(int dry)
{
    for (uint32_t seed = 1; seed <= 40; seed++) {
        uint32_t random = seed * 2654435761u, asked = 0, turn = 0, waiting = 0;
        begin(seed << 27);
        account.dry = dry;
        for (uint32_t sent = 0; sent < MESSAGES; sent++) {
            random = random * 1664525u + 1013904223u;
            uint32_t len = 1 + (random >> 8) % ((seed & 1) ? 500 : 60000);
            turn += (random >> 28) < 6;
            waiting += len;
            asked += (uint32_t)sent_one(sent, turn, len, waiting);
            if ((random >> 24 & 0xF) == 0)
                waiting -= (random >> 4) % (waiting + 1);
            uint32_t count = pt_notes_count(&notes, position, waiting);
            CHECK(count >= count_waiting(sent + 1, waiting));
            CHECK(waiting != 0 || count == 0);
            CHECK(count <= sent + 1);
            CHECK(notes.count <= (dry ? 1 : PT_LINK_NOTES));
        }
        CHECK_EQUAL(memory_lent(pool), dry ? 0 : 1);
        CHECK(dry || asked <= MESSAGES / (PT_LINK_NOTES / 2));
        end();
    }
}

static void no_message_that_waits_is_forgotten(void)
{
    check_any_course(0);
}

static void without_memory_more_are_told_to_wait_and_never_fewer(void)
{
    check_any_course(1);
}

int main(void)
{
    RUN(one_note_borrows_nothing_and_all_are_given_back);
    RUN(as_many_writes_as_there_are_notes_are_told_exactly);
    RUN(no_message_that_waits_is_forgotten);
    RUN(without_memory_more_are_told_to_wait_and_never_fewer);
    return check_end();
}
