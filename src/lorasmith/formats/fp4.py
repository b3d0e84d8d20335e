"""FP4: a sign, two exponent bits and one mantissa bit, in bitsandbytes' order of bit patterns."""

from lorasmith.formats.format import Format, formats

# Magnitude of each pattern of the three low bits in units of the largest, 12; the fourth bit is the sign.
_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
_MAGNITUDES = tuple(twelfth / 12.0 for twelfth in _TWELFTHS)

# Both zeros are stored as +0: 0.0 - m keeps the sign of zero positive where -m would not.
LEVELS = _MAGNITUDES + tuple(0.0 - magnitude for magnitude in _MAGNITUDES)

FP4 = formats.add("fp4", Format("fp4", bits=4, layout="blockwise", levels=LEVELS, bitsandbytes="fp4"))
