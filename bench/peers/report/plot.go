package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// scaleOf splits the name of a variant that has a number of rules.
func scaleOf(variant string) (name string, n int, ok bool) {
	at := strings.LastIndexByte(variant, '-')
	if at < 0 {
		return "", 0, false
	}
	n, err := strconv.Atoi(variant[at+1:])
	return variant[:at], n, err == nil
}

// series lists the variants that were measured with several numbers of rules.
func (r *results) series() (names []string, sizes []int) {
	for _, v := range r.variants {
		name, n, ok := scaleOf(v)
		if !ok {
			continue
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		if !slices.Contains(sizes, n) {
			sizes = append(sizes, n)
		}
	}
	slices.Sort(sizes)
	return names, sizes
}

// drawScale plots connections per second by number of rules.
func drawScale(r *results, path string) error {
	p := plot.New()
	p.Title.Text = "New TCP connections per second through the node"
	p.X.Label.Text = "policies, or rules"
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{}
	p.Y.Min = 0
	p.Legend.Top = false
	p.Legend.Left = true
	var lines []any
	names, sizes := r.series()
	for _, name := range names {
		var points plotter.XYs
		for _, n := range sizes {
			if v, ok := r.median(key{"connects", fmt.Sprintf("%s-%d", name, n), "connects/s"}); ok {
				points = append(points, plotter.XY{X: float64(n), Y: v})
			}
		}
		if len(points) > 0 {
			lines = append(lines, name, points)
		}
	}
	if len(lines) == 0 {
		return fmt.Errorf("plot %s: nothing was measured with several numbers of rules", path)
	}
	if err := plotutil.AddLinePoints(p, lines...); err != nil {
		return fmt.Errorf("plot %s: %w", path, err)
	}
	p.Y.Min = 0
	return p.Save(16*vg.Centimeter, 10*vg.Centimeter, path)
}
