/* Functions for CPython that know bytes and small numbers only. */
#ifndef PT_PURE_H
#define PT_PURE_H

/* Add them to a module object, with the GIL held. Returns 0, or -1 with an exception.
 *
 *   crc16(data, start), encode_frame(type, payload, flags, sequence), decode_frame(data),
 *   put_frame(pipeline_addr, type, payload, flags), all_bytes(list)
 *
 * They answer None to what is out of range and to every fault: the codec then says what is wrong.
 */
int pt_pure_attach(void *module);

#endif
