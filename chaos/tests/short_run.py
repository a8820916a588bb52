"""The sizes of a run that is as short as CI can have it."""

from chaos.plan import ONCE, REPEATED, Sizes

SIZES = Sizes(commands=5_200, rate=60, faults=2 * len(REPEATED) + len(ONCE), old=5_000)
