"""Engines that are right and compute otherwise than the reference: sums in another order, intermediates rounded."""

from conformance.legal import reordered_operators
from conformance.profiles import PROFILES
from reference.engine import ReferenceEngine

OTHER_ORDER = 1001  # odd: in bf16 it also rounds what a profile lets an engine round

reordered = ReferenceEngine("reordered", "float32", ops=reordered_operators(PROFILES["float32"], OTHER_ORDER))
reordered_bf16 = ReferenceEngine("reordered-bf16", "bf16", ops=reordered_operators(PROFILES["bf16"], OTHER_ORDER))
