"""CRC-32C (Castagnoli) in plain Python: polynomial 0x1EDC6F41 reflected, initial value and final
XOR 0xFFFFFFFF; 0xE3069283 of b"123456789".

The standard library has no relative of it, and a loop over bytes is slow. So a long message becomes
one big integer and is made shorter by whole slices of it, with the shifts and XORs of integers.

Theory. A message is a polynomial over GF(2), its first bit the highest power. Its CRC depends on
what it is modulo P alone. P divides x^a + x^b + x^c + 1 for some a > b > c, so x^a may be replaced
by x^b + x^c + 1: the front of a message, all from x^a on, is cut off and added to the rest in three
places. As b is small, what is added hardly reaches beyond the cut. Squaring gives the same for 2 a,
2 b, 2 c, and so on. Each of these halves a message, so that few steps are needed, and all of them
together take about twice as long as the first.

P is divided by x + 1, so each multiple has an even number of terms. With four a is at least 5,275;
with six a few hundred, which makes short what four leave over. The last bytes go through a table.

Bits are reflected: bit 0 of the integer is the highest power, so the front of a message is the low
end of its integer.
"""

from __future__ import annotations

from peertalk.errors import InvalidArgument

POLYNOMIAL = 0x82F63B78
LONG = (6_777, 484, 100, 0)
SHORT = (290, 136, 113, 107, 32, 0)
"""Exponents of two multiples of the polynomial, the highest first. A search over all with a up to
8,000 and 400 found these; the second exponents are small, as they should be."""
SHORTEST = 128
"""Bytes from which on folding is faster than the table."""
PIECE = 65_536
"""Bytes that become one integer: longer ones leave the processor's cache."""


def _table() -> list[int]:
    """The register after each byte: linear in the bits of the byte, so built of its eight."""
    basis = [POLYNOMIAL]
    for _ in range(7):
        basis.append(basis[-1] >> 1 ^ (POLYNOMIAL if basis[-1] & 1 else 0))
    table = [0]
    for entry in reversed(basis):
        table += [entry ^ other for other in table]
    return table


_TABLE = _table()


def by_table(register: int, data: bytes | bytearray) -> int:
    """The register after these bytes, one at a time."""
    for byte in data:
        register = register >> 8 ^ _TABLE[(register ^ byte) & 0xFF]
    return register


def folded(value: int, bits: int, multiple: tuple[int, ...]) -> tuple[int, int]:
    """A message of these bits made nearly as short as the highest exponent of the multiple: at most
    a quarter longer, because one more step for so little costs as much as any.

    Args:
        value: the message, its first bit lowest.
        bits: its length.
        multiple: exponents of a multiple of the polynomial, the highest first and 0 last.

    Returns:
        Value and length of a message that is the same modulo the polynomial.
    """
    highest, second, *others = multiple
    for level in reversed(range((bits // highest).bit_length())):
        end, reach = highest << level, highest - second << level
        while bits > end + end // 4:
            cut = min(bits - end, reach)  # of more the sum would be longer than end
            front = value & (1 << cut) - 1
            added = front
            for exponent in others:
                added ^= front << (second - exponent << level)
            value = value >> cut ^ added << reach - cut
            bits -= cut
    return value, bits


def _continued(register: int, data: bytes | bytearray) -> int:
    """The register after these bytes, the fastest way for so many."""
    if len(data) < SHORTEST:
        return by_table(register, data)
    # a register that is added to the first 32 bits starts from 0
    value, bits = int.from_bytes(data, "little") ^ register, 8 * len(data)
    value, bits = folded(*folded(value, bits, LONG), SHORT)
    zeros = -bits % 8  # in front they change nothing
    return by_table(0, (value << zeros).to_bytes((bits + zeros) // 8, "little"))


def crc32c(data: bytes | bytearray | memoryview, start: int = 0) -> int:
    """The CRC of data.

    Args:
        data: any number of bytes.
        start: 0 for a new CRC, else the CRC of the bytes before: 0 to 4,294,967,295.

    Returns:
        0 to 4,294,967,295. On the wire it stands high byte first.

    Raises:
        InvalidArgument: start is out of its bounds.
    """
    if not 0 <= start <= 0xFFFFFFFF:
        raise InvalidArgument(
            f"CRC start value is {start}: it must be 0 to 4,294,967,295, the CRC of the bytes "
            "before"
        )
    register = start ^ 0xFFFFFFFF
    whole = data if isinstance(data, (bytes, bytearray)) else memoryview(data).tobytes()
    for at in range(0, len(whole), PIECE):
        register = _continued(register, whole[at : at + PIECE])
    return register ^ 0xFFFFFFFF
