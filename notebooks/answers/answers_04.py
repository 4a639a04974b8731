"""Answers to the exercises of notebook 04: python notebooks/answers/answers_04.py"""
import os
import sys

sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]

from statistics import mean

from results import claims

# ---------------------------------------------------------------- 1. Eq. 1's error over its null, scale, g = 1
ratio = {}
for loss in ("frozen", "hssl", "assl"):
    runs = claims.pick(claims.rows_of("learned"), group="scale", loss=loss).values()
    ratio[loss] = mean(r["equation1"][0] / r["invariance"][0] for r in runs)
    print(f"{claims.LOSSES[loss]}: {ratio[loss]:.2f}")
assert ratio["hssl"] < 1 < ratio["assl"] < ratio["frozen"]
# H-SSL comes to nearly 1 (0.97), because it makes the features nearly constant along the axis: then f(x)(g⁻¹·g0) is nearly f(x)(g0),
# and the error of Eq. 1 is nearly the invariance.  That f(T_g x) comes near to f(x) does not follow.
