"""Bytes are printed as `hexdump -C` prints them; nothing of them reaches a terminal as it is."""

from order_service.cli.hex_dump import hex_lines


def test_bytes_are_hexadecimal_digits_and_printable_ascii():
    assert list(hex_lines(b"\x1b[31m\xc3\xa9 0123456789abc", 512)) == [
        "00000000  1b 5b 33 31 6d c3 a9 20 30 31 32 33 34 35 36 37  |.[31m.. 01234567|",
        "00000010  38 39 61 62 63                                   |89abc|",
    ]


def test_only_so_many_bytes_are_printed():
    assert list(hex_lines(b"0123456789", 4)) == [
        "00000000  30 31 32 33                                      |0123|",
        "6 bytes more: see --bytes",
    ]
    assert list(hex_lines(b"", 4)) == []
    assert list(hex_lines(b"a", 0)) == ["1 bytes more: see --bytes"]
