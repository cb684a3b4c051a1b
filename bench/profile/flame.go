package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// frame is a function below the functions that called it.
type frame struct {
	name  string
	time  int64 // with what it calls
	calls map[string]*frame
}

func newFrame(name string) *frame { return &frame{name: name, calls: map[string]*frame{}} }

// tree joins stacks that begin alike.
func tree(stacks map[string]int64) *frame {
	root := newFrame("all")
	for stack, time := range stacks {
		root.time += time
		at := root
		for _, name := range strings.Split(stack, ";") {
			if at.calls[name] == nil {
				at.calls[name] = newFrame(name)
			}
			at = at.calls[name]
			at.time += time
		}
	}
	return root
}

func (f *frame) depth() int {
	deepest := 0
	for _, c := range f.calls {
		deepest = max(deepest, c.depth())
	}
	return deepest + 1
}

// Sizes of the picture in pixels; a letter of its font is about letterWidth wide.
const (
	graphWidth  = 1400
	frameHeight = 17
	letterWidth = 6.5
	thinnest    = 0.3 // narrower frames are left out
)

// flameGraph draws stacks as Brendan Gregg's flame graphs do, callers on top: the
// width of a frame is its share of the time, its place from left to right is that of
// its name in the alphabet. Names appear when the pointer rests on a frame.
func flameGraph(stacks map[string]int64) []byte {
	root := tree(stacks)
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="monospace" font-size="11">`+"\n",
		graphWidth, root.depth()*frameHeight)
	drawFrame(&b, root, root.time, 0, 0)
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func drawFrame(b *bytes.Buffer, f *frame, total int64, x float64, level int) {
	width := graphWidth * float64(f.time) / float64(total)
	if width < thinnest {
		return
	}
	y := level * frameHeight
	fmt.Fprintf(b, `<g><title>%s: %.2f%%, %.3f s</title><rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s" stroke="white" stroke-width="0.5"/>`,
		escaped(f.name), percent(f.time, total), float64(f.time)/1e9, x, y, width, frameHeight, color(f.name))
	if letters := int(width/letterWidth) - 1; letters > 2 {
		fmt.Fprintf(b, `<text x="%.1f" y="%d">%s</text>`, x+3, y+frameHeight-5, escaped(shortened(f.name, letters)))
	}
	b.WriteString("</g>\n")
	for _, name := range slices.Sorted(maps.Keys(f.calls)) {
		drawFrame(b, f.calls[name], total, x, level+1)
		x += graphWidth * float64(f.calls[name].time) / float64(total)
	}
}

// shortened leaves out the path of the package first.
func shortened(name string, letters int) string {
	name = name[strings.LastIndexByte(name, '/')+1:]
	if len(name) > letters {
		return name[:letters]
	}
	return name
}

func escaped(text string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(text)) // a Buffer takes everything
	return b.String()
}

// color tells apart whose code it is.
func color(name string) string {
	switch {
	case strings.Contains(name, "netverdict/"):
		return "#f7a35c"
	case strings.HasPrefix(name, "runtime"), strings.HasPrefix(name, "internal/runtime"):
		return "#a6cee3"
	case strings.Contains(name, "yscall"):
		return "#e9696b"
	}
	return "#f5d76e"
}
