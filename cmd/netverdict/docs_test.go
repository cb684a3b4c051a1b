package main

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/netverdict/netverdict/engine/metrics"
)

// repository is the root of the sources.
const repository = "../.."

// foreignFlags are flags in our texts that belong to other programs.
var foreignFlags = map[string][]string{
	"docker":       {"build-arg", "push", "security-opt"},
	"ginkgo":       {"focus", "procs", "skip", "timeout", "provider", "report-dir"},
	"helm":         {"install", "reuse-values", "set"},
	"hubble":       {"print-policy-names", "server", "verdict", "follow", "to-pod"},
	"hubble-relay": {"peer-service", "tls-hubble-client-cert-file", "tls-hubble-client-key-file", "tls-hubble-server-ca-files"},
	"iptables":     {"noflush"},
	"kubectl":      {"previous", "tail"},
	"kubelet":      {"root-dir"},
	"prometheus":   {"enable-feature"},
	"tar":          {"strip-components"},
}

// texts are the files whose words about the program are checked, by path from the
// root of the repository.
func texts(t *testing.T) map[string]string {
	t.Helper()
	read := map[string]string{}
	err := filepath.WalkDir(repository, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "bin"):
			return filepath.SkipDir
		case filepath.Ext(path) == ".md", strings.Contains(path, "/chart/") && (d.Name() == "NOTES.txt" || filepath.Ext(path) == ".yaml"):
			text, err := os.ReadFile(path)
			name, relErr := filepath.Rel(repository, path)
			read[name] = string(text)
			if err == nil {
				err = relErr
			}
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, must := range []string{"README.md", "deploy/README.md", "deploy/chart/monitoring/alerts.yaml", "deploy/chart/values.yaml"} {
		if read[must] == "" {
			t.Fatalf("%s is not among the %d files found", must, len(read))
		}
	}
	return read
}

// flagNames are the flags of a command; of the root with those of all verbs.
func flagNames(cmd *cobra.Command) map[string]bool {
	names := map[string]bool{"help": true}
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names[f.Name] = true })
	for _, sub := range cmd.Commands() {
		maps.Copy(names, flagNames(sub))
	}
	return names
}

var (
	flagWord = regexp.MustCompile(`(?:^|[\s` + "`" + `("'\[])--([a-z][a-z0-9-]+)`)
	// aCall is a use of one verb, to its end or to the next program's.
	aCall = regexp.MustCompile(`netverdict (agent|audit|cleanup|demo|eval|explain|flows|probe|status|version)\b([^|;` + "`" + `\n]*)`)
)

// checkFlags demands that flags exist: behind a verb of ours that verb's, elsewhere
// any verb's or another program's.
func checkFlags(t *testing.T, where, text string) {
	t.Helper()
	root := newRoot(env{})
	text = strings.ReplaceAll(text, "\\\n", " ")
	for _, call := range aCall.FindAllStringSubmatch(text, -1) {
		verb, _, err := root.Find([]string{call[1]})
		if err != nil {
			t.Fatal(err)
		}
		known := flagNames(verb)
		for _, m := range flagWord.FindAllStringSubmatch(call[2], -1) {
			if !known[m[1]] {
				t.Errorf("%s: netverdict %s has no --%s: %s", where, call[1], m[1], call[0])
			}
		}
	}
	known := flagNames(root)
	for _, flags := range foreignFlags {
		for _, name := range flags {
			known[name] = true
		}
	}
	for _, m := range flagWord.FindAllStringSubmatch(text, -1) {
		if !known[m[1]] {
			t.Errorf("%s: there is no flag --%s (another program's? foreignFlags has those)", where, m[1])
		}
	}
}

// TestDocumentedFlags: flags in README files, chart, alerts and help exist.
func TestDocumentedFlags(t *testing.T) {
	t.Parallel()
	for name, text := range texts(t) {
		if name != "CHANGELOG.md" { // tells of what was
			checkFlags(t, name, text)
		}
	}
	for _, cmd := range newRoot(env{}).Commands() {
		if cmd.Long == "" && cmd.Name() != "version" || cmd.Example == "" {
			t.Errorf("%s: its help lacks a text or an example", cmd.CommandPath())
		}
		checkFlags(t, cmd.CommandPath()+" --help", cmd.Long+"\n"+cmd.Example)
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			checkFlags(t, cmd.CommandPath()+" --"+f.Name, strings.ReplaceAll(f.Usage, "`", ""))
		})
	}
}

// TestDocumentedNames: make targets, metrics, tests and files that texts name exist.
func TestDocumentedNames(t *testing.T) {
	t.Parallel()
	targets := namesIn(t, `(?m)^([a-z][a-z-]*):`, "Makefile")
	tests := namesIn(t, `(?m)^func (Test[A-Za-z]+)\(`, filesWith(t, "_test.go")...)
	served := metrics.Names()
	for name, text := range texts(t) {
		for _, c := range []struct {
			what, pattern string
			exists        func(string) bool
		}{
			{"make target", "(?:^|\n|`)make ([a-z][a-z-]+)", func(s string) bool { return targets[s] }},
			{"test", `\b(Test[A-Z][A-Za-z]+)\b`, func(s string) bool { return tests[s] }},
			{"metric", `\b(netverdict_[a-z_]+[a-z])\b`, func(s string) bool { return isMetric(served, s) }},
			{"file", "`((?:bench|cmd|deploy|engine|kube|policy|\\.ci)/[a-z0-9/._-]+)`", func(s string) bool {
				return exists(filepath.Join(repository, s)) || exists(filepath.Join(repository, filepath.Dir(name), s))
			}},
		} {
			for _, m := range regexp.MustCompile(c.pattern).FindAllStringSubmatch(text, -1) {
				if !c.exists(m[1]) {
					t.Errorf("%s: there is no %s %s", name, c.what, m[1])
				}
			}
		}
	}
}

// isMetric knows the series of histograms, too.
func isMetric(served []string, name string) bool {
	for _, suffix := range []string{"", "_bucket", "_sum", "_count"} {
		if base, ok := strings.CutSuffix(name, suffix); ok && slices.Contains(served, base) {
			return true
		}
	}
	return false
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// filesWith lists files of the repository whose names end so.
func filesWith(t *testing.T, suffix string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(repository, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, suffix) {
			names = append(names, strings.TrimPrefix(path, repository+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// namesIn collects what the group of a pattern matches in files.
func namesIn(t *testing.T, pattern string, files ...string) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, name := range files {
		text, err := os.ReadFile(filepath.Join(repository, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
			found[m[1]] = true
		}
	}
	if len(found) == 0 {
		t.Fatalf("nothing matches %s in %d files", pattern, len(files))
	}
	return found
}

var (
	markdownLink    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	markdownHeading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notInAnchors    = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// TestLinks: links between the files lead to files and headings that exist.
func TestLinks(t *testing.T) {
	t.Parallel()
	all := texts(t)
	links := 0
	for name, text := range all {
		for _, m := range markdownLink.FindAllStringSubmatch(text, -1) {
			file, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(m[1], "://") {
				continue
			}
			links++
			target := name
			if file != "" {
				target = filepath.Join(filepath.Dir(name), file)
			}
			switch {
			case !exists(filepath.Join(repository, target)):
				t.Errorf("%s: the link to %s leads nowhere", name, m[1])
			case anchor != "" && !slices.Contains(anchors(all[target]), anchor):
				t.Errorf("%s: the link to %s: %s has no such heading", name, m[1], target)
			}
		}
	}
	if links < 10 {
		t.Errorf("only %d links found", links)
	}
}

// anchors are what GitHub makes of headings.
func anchors(text string) (all []string) {
	for _, m := range markdownHeading.FindAllStringSubmatch(text, -1) {
		all = append(all, strings.ReplaceAll(notInAnchors.ReplaceAllString(strings.ToLower(strings.TrimSpace(m[1])), ""), " ", "-"))
	}
	return all
}
