# Draws the win rates over all prompts, by the best of n images, as an SVG: a panel per metric, a bar per comparison.
#
#   awk -f pipelines/mini/bars.awk runs/mini/winrate.txt >pipelines/mini/bars.svg
#
# A bar is dark where one model is ahead by more than noise.

/^ +set +n / && !metrics {
    gsub(/ \(held out\)/, "~(held~out)")
    for (i = 3; i <= NF; i++) {
        gsub(/~/, " ", $i)
        metric[++metrics] = $i
    }
}

/ vs .* all  / && rows < 3 && !done {
    row[++rows] = substr($0, 1, index($0, "  ") - 1)
    rest = $0
    for (m = 1; m <= metrics; m++) {
        match(rest, /[0-9.]+ % \[[0-9.]+, [0-9.]+\]( [-+])?/)
        text = substr(rest, RSTART, RLENGTH)
        rest = substr(rest, RSTART + RLENGTH)
        split(text, part, /[^-+0-9.]+/)
        rate[rows, m] = part[1]; low[rows, m] = part[2]; high[rows, m] = part[3]; sign[rows, m] = part[4]
    }
}

/^win rate, mean/ { done = 1 }

function x(percent) { return left + (width - 70) * percent / 100 }

END {
    names = 210; width = 200; step = 30
    height = 50 + step * rows
    printf "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' font-family='sans-serif' font-size='13'>\n", names + metrics * width, height
    print "<rect width='100%' height='100%' fill='white'/>"
    for (r = 1; r <= rows; r++)
        printf "<text x='%d' y='%d' text-anchor='end'>%s</text>\n", names - 8, 30 + step * (r - 0.5) + 5, row[r]
    for (m = 1; m <= metrics; m++) {
        left = names + (m - 1) * width
        printf "<text x='%d' y='18' font-weight='bold'>%s</text>\n", left, metric[m]
        for (r = 1; r <= rows; r++) {
            y = 30 + step * (r - 0.5)
            printf "<rect x='%.1f' y='%.1f' width='%.1f' height='16' fill='%s'/>\n", x(0), y - 8, x(rate[r, m]) - x(0), sign[r, m] ? "#3b6ea5" : "#b9cbdd"
            printf "<path d='M%.1f %.1fH%.1fm0 -4v8M%.1f %.1fv8' stroke='#222' fill='none'/>\n", x(low[r, m]), y, x(high[r, m]), x(low[r, m]), y - 4
            printf "<text x='%.1f' y='%.1f'>%s %%</text>\n", x(100) + 6, y + 5, rate[r, m]
        }
        printf "<path d='M%.1f 26V%d' stroke='#c33' stroke-dasharray='3 3'/><text x='%.1f' y='%d' font-size='11' fill='#c33' text-anchor='middle'>50 %%</text>\n", x(50), height - 18, x(50), height - 4
    }
    print "</svg>"
}
