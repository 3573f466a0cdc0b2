"""Bytes and seconds as people read them."""


def size(count: float) -> str:
    """Return a number of bytes with its unit.

    >>> size(1572864), size(3 << 40)
    ('1.5 MiB', '3,072.0 GiB')
    """
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count} B"
        count /= 1024
    return f"{count:,.1f} GiB"


def clock(seconds: float) -> str:
    """Return a duration with its unit.

    >>> clock(0.25), clock(90), clock(600), clock(36000)
    ('250 ms', '90.0 s', '10 min', '10.0 h')
    """
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
