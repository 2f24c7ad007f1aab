"""The analysis of a study's results. Nothing here imports torch or draws.

`study.analyse(results, name)` returns a `StudyAnalysis`: prepared trials (`trials`), what grows (`trials.SizeAxis`),
`Series` with their fitted `trends`, and `surfaces` of size and data. Each part is computed once, on first use, and
report, `predict` and demo read the same numbers from it; `predictions` are those at other sizes, where compute is
counted (`counting`). `selected` and `compute` serve commands that take a results folder or other points.
"""
