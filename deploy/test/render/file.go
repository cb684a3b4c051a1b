package render

import (
	"path/filepath"
	"regexp"
	"strings"
)

// File is a manifest for kubectl that is made from the chart.
type File struct {
	// Name of the file in deploy/.
	Name string
	// Header is the comment at its top, without the #.
	Header string
	// Values are those that differ from values.yaml.
	Values map[string]any
}

// Files are the manifests in deploy/ that are made here.
var Files = []File{
	{
		Name: "install.yaml",
		Header: `Runs netverdict on every node. README.md says how to use it and how to undo it:
deleting the objects is not enough.

Why kube-system: a NetworkPolicy agent is part of the node, as kube-proxy is. It needs the
host network, which namespaces with Pod Security enforcement refuse; the priority class
system-node-critical, which some platforms grant only there; and it must start before the
admission webhooks that its node's pods provide, which by custom leave kube-system out.`,
	},
	{
		Name: "uninstall.yaml",
		Header: `Replaces the agents of install.yaml, node by node, by pods that remove what agents leave on a
node: iptables rules and ipsets. From then on nothing is enforced. See README.md.`,
		Values: map[string]any{"cleanup": true},
	},
}

// sourceLine is helm's remark about where a document comes from.
var sourceLine = regexp.MustCompile(`(?m)^# Source: .*\n`)

// Text renders the file from the chart in deploy/chart.
func (f File) Text(deploy string) (string, error) {
	rendered, err := Chart(filepath.Join(deploy, "chart"), Release{Name: "netverdict", Namespace: "kube-system", Values: f.Values})
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for line := range strings.Lines(f.Header + "\n\nGenerated from chart/: change that, then run `go generate` in test/. DO NOT EDIT.\n") {
		out.WriteString(strings.TrimRight("# "+line, " \n") + "\n")
	}
	out.WriteString(strings.TrimRight(sourceLine.ReplaceAllString(rendered.Manifest, ""), "\n") + "\n")
	return out.String(), nil
}
