# Wins, ties and losses of a candidate by the best image of each prompt, averaged over the metrics:
#
#   winrate a.parquet base.parquet --tests --format csv | awk -f pipelines/macro.awk

BEGIN { FS = "," }
NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
$column["images"] == "best" && $column["losses"] != "" {
    row = sprintf("%-32s %-14s %5d", $column["candidate"] " vs " $column["baseline"], "set" in column ? $column["set"] : "all", $column["n"])
    if (!(row in metrics)) order[++rows] = row
    metrics[row]++
    wins[row] += $column["wins"] / $column["n"]
    ties[row] += $column["ties"] / $column["n"]
    losses[row] += $column["losses"] / $column["n"]
}
END {
    printf "mean over the metrics: share of prompts won, tied and lost\n%-32s %-14s %5s %7s %7s %7s\n", "", "set", "n", "won", "tied", "lost"
    for (i = 1; i <= rows; i++) {
        r = order[i]
        printf "%s %5.1f %% %5.1f %% %5.1f %%\n", r, 100 * wins[r] / metrics[r], 100 * ties[r] / metrics[r], 100 * losses[r] / metrics[r]
    }
}
