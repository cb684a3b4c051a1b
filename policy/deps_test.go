package policy_test

import (
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/netverdict/netverdict"

// ban is an import path that a package must not use, and why. It covers the
// packages below the path too, unless exact.
type ban struct {
	path   string
	reason string
	exact  bool
}

func (b ban) covers(imported string) bool {
	return imported == b.path || !b.exact && strings.HasPrefix(imported, b.path+"/")
}

// purity is what policy promises: API objects in, decisions out, the same for
// the same objects, without I/O, goroutines or a client.
var purity = []ban{
	{path: "net", exact: true, reason: "addresses are net/netip values; policy opens no connection"},
	{path: "net/http", reason: "policy opens no connection"},
	{path: "net/rpc", reason: "policy opens no connection"},
	{path: "os", reason: "callers read files and the environment"},
	{path: "io", reason: "callers read and write"},
	{path: "bufio", reason: "callers read and write"},
	{path: "embed", reason: "callers bring the objects"},
	{path: "log", reason: "policy returns what it has to say"},
	{path: "k8s.io/klog/v2", reason: "policy returns what it has to say"},
	{path: "syscall", reason: "decisions do not depend on the operating system"},
	{path: "golang.org/x/sys", reason: "decisions do not depend on the operating system"},
	{path: "unsafe", exact: true, reason: "an agent with all privileges runs this on bytes from the network"},
	{path: "C", exact: true, reason: "an agent with all privileges runs this on bytes from the network"},
	{path: "context", reason: "policy neither blocks nor can be cancelled"},
	{path: "sync", reason: "no goroutine is started here, and what is returned never changes"},
	{path: "runtime", reason: "decisions do not depend on the machine"},
	{path: "math/rand", reason: "the same objects make the same tree"},
	{path: "crypto/rand", reason: "the same objects make the same tree"},
	{path: "testing", reason: "test support lives in policytest and oracle"},
	{path: module + "/policy/oracle", reason: "the oracle judges the tree, so the tree must not use it"},
	{path: module + "/policy/policytest", reason: "only tests need random clusters"},
}

// closure is what policy's dependencies must not bring in either. The API
// types themselves pull in net and os, so it cannot be as strict as purity.
var closure = []ban{
	{path: "k8s.io/client-go", reason: "who embeds the library for its decisions gets no API client"},
	{path: module + "/engine", reason: "the engine asks policy, never the other way round"},
	{path: module + "/kube", reason: "kube feeds policy, never the other way round"},
	{path: module + "/cmd", reason: "nothing imports the command"},
	{path: module + "/bench", reason: "the laboratory imports the product"},
}

func TestPolicyIsPure(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{".", "validation"} {
		pkg := importDir(t, dir)
		for _, b := range append(purity, closure...) {
			for _, imported := range pkg.Imports {
				if b.covers(imported) {
					t.Errorf("%s imports %s: %s", filepath.Join("policy", dir), imported, b.reason)
				}
			}
		}
		forEachFile(t, pkg, func(fset *token.FileSet, f *ast.File) { checkStatements(t, fset, f) })
	}
}

// checkStatements finds what needs no import to be impure: starting goroutines,
// waiting for them, and the built-in functions that print.
func checkStatements(t *testing.T, fset *token.FileSet, f *ast.File) {
	t.Helper()
	ast.Inspect(f, func(n ast.Node) bool {
		found := ""
		switch n := n.(type) {
		case *ast.GoStmt:
			found = "a go statement"
		case *ast.SelectStmt, *ast.SendStmt, *ast.ChanType:
			found = "a channel"
		case *ast.CallExpr:
			if name, ok := n.Fun.(*ast.Ident); ok && (name.Name == "print" || name.Name == "println") {
				found = "a call to " + name.Name
			}
			if read := readsClock(n); read != "" {
				found = "a call to " + read
			}
		}
		if found != "" {
			t.Errorf("%s: %s: policy starts no goroutine, does no I/O and reads no clock", fset.Position(n.Pos()), found)
		}
		return true
	})
}

// readsClock names the function of package time that is called, if the answer
// depends on when: time itself is imported for the ages of pods.
func readsClock(call *ast.CallExpr) string {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	pkg, ok := sel.X.(*ast.Ident)
	if !ok || pkg.Name != "time" {
		return ""
	}
	switch sel.Sel.Name {
	case "Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick":
		return "time." + sel.Sel.Name
	}
	return ""
}

// The whole dependency graph, as the go command sees it.
func TestDependenciesPointInward(t *testing.T) {
	t.Parallel()
	client := ban{path: "k8s.io/client-go", reason: "the packet path talks to no API server"}
	command := ban{path: module + "/cmd", reason: "nothing imports the command"}
	laboratory := ban{path: module + "/bench", reason: "the laboratory imports the product"}
	for pattern, bans := range map[string][]ban{
		"policy":            closure,
		"policy/validation": closure,
		"engine/...": {client, command, laboratory,
			{path: module + "/kube", reason: "they meet in cmd: the engine is given trees"}},
		"kube/...": {command, laboratory,
			{path: module + "/engine", reason: "they meet in cmd: kube makes snapshots"}},
	} {
		for importer, deps := range dependencies(t, module+"/"+pattern) {
			for _, b := range bans {
				for _, dep := range deps {
					if b.covers(dep) {
						t.Errorf("%s depends on %s: %s", importer, dep, b.reason)
					}
				}
			}
		}
	}
}

// A check that finds nothing must be able to find something.
func TestPurityFindsOffenders(t *testing.T) {
	t.Parallel()
	pkg := importDir(t, "oracle") // parses addresses with package net, on purpose unlike policy
	var found []string
	for _, b := range append(purity, closure...) {
		for _, imported := range pkg.Imports {
			if b.covers(imported) {
				found = append(found, imported)
			}
		}
	}
	if fmt.Sprint(found) != "[net]" {
		t.Errorf("forbidden imports of the oracle: %v, want [net]", found)
	}
	if deps := dependencies(t, module+"/policy/oracle")[module+"/policy/oracle"]; len(deps) == 0 {
		t.Error("go list shows no dependencies of the oracle")
	}
	for imported, want := range map[string]bool{"net": true, "net/netip": false, "netip": false} {
		if got := purity[0].covers(imported); got != want {
			t.Errorf("the ban on net covers %s: %v, want %v", imported, got, want)
		}
	}
}

func importDir(t *testing.T, dir string) *build.Package {
	t.Helper()
	pkg, err := build.ImportDir(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	return pkg
}

// forEachFile parses the files of a package that are not tests, whatever their
// build constraints: other platforms are bound by the same promise.
func forEachFile(t *testing.T, pkg *build.Package, visit func(*token.FileSet, *ast.File)) {
	t.Helper()
	fset := token.NewFileSet()
	for _, name := range append(pkg.GoFiles, pkg.IgnoredGoFiles...) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, filepath.Join(pkg.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		visit(fset, f)
	}
}

// dependencies asks the go command for what packages depend on, directly or
// not, without their tests.
func dependencies(t *testing.T, pattern string) map[string][]string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-f", `{{.ImportPath}}{{range .Deps}} {{.}}{{end}}`, pattern)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd, err)
	}
	deps := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		deps[fields[0]] = fields[1:]
	}
	if len(deps) == 0 {
		t.Fatalf("%v lists no package", cmd)
	}
	return deps
}
