"""int4: sixteen equal steps, code 8 = zero, codes 1 to 15 = -7/7 to 7/7 of the block's absmax."""

from lorasmith.formats.format import Format, formats

# Code 0 (-8/7) lies below every scaled value, so quantizing never writes it: the range is symmetric.
LEVELS = tuple((code - 8) / 7.0 for code in range(16))

INT4 = formats.add("int4", Format("int4", bits=4, layout="blockwise", levels=LEVELS, bitsandbytes=None))
