"""The columns of comparisons: one row per run, case and provider, with unit and meaning of each.

Names carry units; SI in storage; null for what was not measured. The shapes of a case stand beside these columns, as
``shape_<field>``.
"""

from __future__ import annotations

from scalebench.store.columns import ENVIRONMENT_COLUMNS, Column

CASE = (
    Column("operation", "", "operation that was compared: a name of `scalebench compare --help`"),
    Column("run", "", "name of the run's folder"),
    Column("run_ended", "", "why the run ended early and which cases it did not measure; null if it measured all"),
    Column("source", "", "measured, or the program whose benchmark file was imported"),
    Column("backward", "", "whether a call includes the backward pass"),
    Column("case", "", "the case: its shapes and number format"),
    Column("case_index", "1", "place of the case in the run, from 0"),
    Column("dtype", "", "number format of the inputs"),
    Column("provider", "", "implementation that was measured"),
    Column("summary", "", "what that implementation is"),
    Column("status", "", "ok, unavailable, oom, failed or killed"),
    Column("error_class", "", "class of the error that ended the measurement"),
    Column("error_message", "", "message of that error, or why the provider is unavailable"),
)
TIMES = (
    Column("time_median_s", "s", "time of a call: geometric mean over processes of the median of each"),
    Column("time_low_s", "s", "lower end of its 95 % interval"),
    Column("time_high_s", "s", "upper end of its 95 % interval"),
    Column("time_p20_s", "s", "20th percentile of all samples"),
    Column("time_p80_s", "s", "80th percentile of all samples"),
    Column("fast_mode_s", "s", "median of the faster of two modes; null where the samples have one"),
    Column("slow_mode_s", "s", "median of the slower of two modes"),
    Column("fast_mode_share", "1", "share of the samples in the faster mode"),
    Column("samples", "1", "samples over all processes"),
    Column(
        "outliers", "1", "samples more than 14.8 median absolute deviations from the median; flagged, never dropped"
    ),
    Column("processes", "1", "processes that timed the provider"),
    Column("calls_per_sample", "1", "calls between two readings of the clock"),
    Column("noise", "1", "half the 95 % interval of the median over the median, largest over the processes"),
    Column("stop_reason", "", "why most processes stopped sampling: target noise, stable noise or timeout"),
    Column("stop_reasons", "", "every reason, with the number of processes that had it"),
    Column("prepare_time_s", "s", "time before the first call: what the provider prepares"),
    Column("first_call_time_s", "s", "time of the first call, with compilation and autotuning"),
    Column("timing_method", "", "clock and way of calling"),
    Column(
        "timing_floor_s", "s", "time that the same clock shows for adding to a single number: no sample can be shorter"
    ),
)
RATES = (
    Column("flops", "FLOP", "FLOPs of a call, a multiply-add counted as two"),
    Column("bytes_moved", "B", "bytes that a call must read and write at least"),
    Column("achieved_flops_per_s", "FLOP/s", "flops over the median time"),
    Column("achieved_bytes_per_s", "B/s", "bytes_moved over the median time"),
    Column("matmul_ceiling_flops_per_s", "FLOP/s", "fastest matrix product measured in the same run"),
    Column("copy_ceiling_bytes_per_s", "B/s", "fastest copy measured in the same run, larger than the caches"),
    Column(
        "cached_ceiling_bytes_per_s", "B/s", "fastest copy within the caches; null on a GPU, whose cache is flushed"
    ),
    Column("ceiling_source", "", "how the ceilings were measured"),
    Column("invalid_reason", "", "why the row cannot be true (such a row has no verdict)"),
    Column("peak_memory_bytes", "B", "peak memory of a call above its inputs"),
    Column("memory_method", "", "how the memory was measured, or why it was not"),
)
RESULTS = (
    Column("max_abs_error", "1", "largest difference from the float64 result"),
    Column("eager_max_abs_error", "1", "the same of the eager implementation at the same number format"),
    Column("error_ratio", "1", "max_abs_error over eager_max_abs_error"),
    Column("error_result", "", "name of the result with the largest error"),
    Column("accepted", "", "whether every result is as right as the rule asks; null where it was not checked"),
    Column("error_note", "", "what is wrong, or why it was not checked"),
)
VERDICT = (
    Column("baseline", "", "provider that the others are compared with"),
    Column("ratio", "1", "time of a call over the baseline's: below 1 is faster; geometric mean over processes"),
    Column("ratio_low", "1", "lower end of its 95 % interval"),
    Column("ratio_high", "1", "upper end of its 95 % interval"),
    Column("margin", "1", "relative difference below which two times count as equal"),
    Column("verdict", "", "FASTER, SLOWER, SAME or INCONCLUSIVE"),
    Column("verdict_reason", "", "reason for the verdict, or for having none"),
)
MACHINE = (
    *ENVIRONMENT_COLUMNS,
    Column("cpu_count", "1", "CPU threads of the machine"),
    Column("load_average", "1", "load over the minute before anything was measured"),
    Column("command", "", "command line, without what looks like a secret"),
)
COMPARISON_COLUMNS = (*CASE, *TIMES, *RATES, *RESULTS, *VERDICT, *MACHINE)
ROW_COLUMNS = tuple(column.name for column in COMPARISON_COLUMNS)
