package deploytest

import (
	"bytes"
	"debug/elf"
	"go/version"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// There is no container engine where these tests must run. So the Dockerfile is
// parsed by BuildKit's own parser, and its build stage is followed on this machine:
// the same context, the same files copied, the same command.

func parseDockerfile(t *testing.T) (stages []instructions.Stage, args map[string]string) {
	t.Helper()
	result, err := parser.Parse(strings.NewReader(readManifest(t, "Dockerfile")))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range result.Warnings {
		t.Errorf("Dockerfile: %s", w.Short)
	}
	stages, meta, err := instructions.Parse(result.AST, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(stages) != 2 || stages[0].Name != "build" {
		t.Fatalf("%d stages, want the stage build and the image", len(stages))
	}
	args = map[string]string{}
	for _, command := range meta {
		for _, a := range command.Args {
			args[a.Key] = *a.Value
		}
	}
	return stages, args
}

// commands are the instructions of one kind in a stage.
func commands[T instructions.Command](s instructions.Stage) []T {
	var out []T
	for _, c := range s.Commands {
		if typed, ok := c.(T); ok {
			out = append(out, typed)
		}
	}
	return out
}

func TestDockerfileStages(t *testing.T) {
	stages, args := parseDockerfile(t)
	build, final := stages[0], stages[1]
	if build.BaseName != "golang:${GO_VERSION}-bookworm" || build.Platform != "$BUILDPLATFORM" {
		t.Errorf("build stage FROM --platform=%s %s", build.Platform, build.BaseName)
	}
	mod, err := os.ReadFile(filepath.Join(repository, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	needs := regexp.MustCompile(`(?m)^go (\S+)`).FindSubmatch(mod)
	if needs == nil || version.Compare("go"+args["GO_VERSION"], "go"+string(needs[1])) < 0 {
		t.Errorf("GO_VERSION is %s, go.mod needs %s", args["GO_VERSION"], needs)
	}
	if final.BaseName != "debian:bookworm-slim" {
		t.Errorf("image FROM %s", final.BaseName)
	}
	if len(commands[*instructions.AddCommand](build))+len(commands[*instructions.AddCommand](final)) != 0 {
		t.Error("ADD fetches and unpacks: use COPY")
	}
}

func TestDockerfileImage(t *testing.T) {
	stages, _ := parseDockerfile(t)
	final := stages[1]
	copies := commands[*instructions.CopyCommand](final)
	if len(copies) != 1 || copies[0].From != "build" || copies[0].Chmod != "0555" || copies[0].DestPath != "/netverdict" ||
		!slices.Equal(copies[0].SourcePaths, []string{"/out/netverdict"}) {
		t.Errorf("copied into the image: %v, want the binary alone, which nobody may write", copies)
	}
	entry := commands[*instructions.EntrypointCommand](final)
	if len(entry) != 1 || entry[0].PrependShell || !slices.Equal(entry[0].CmdLine, []string{"/netverdict"}) {
		t.Errorf("entrypoint %v, want /netverdict without a shell", entry)
	}
	if user := commands[*instructions.UserCommand](final); len(user) != 1 || user[0].User != "0:0" {
		t.Errorf("user %v: capabilities reach only root", user)
	}
	install := strings.Join(strings.Fields(strings.Join(commands[*instructions.RunCommand](final)[0].CmdLine, " ")), " ")
	for _, want := range []string{"apt-get install -y --no-install-recommends iptables &&", "rm -rf /var/lib/apt/lists/*"} {
		if !strings.Contains(install, want) {
			t.Errorf("the image runs %q, without %q", install, want)
		}
	}
	var labels []string
	for _, c := range commands[*instructions.LabelCommand](final) {
		for _, l := range c.Labels {
			labels = append(labels, strings.TrimPrefix(l.Key, "org.opencontainers.image."))
		}
	}
	if diff := cmp.Diff([]string{"title", "description", "source", "licenses", "version"}, labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
}

// buildCommand is the build stage's command that makes the binary.
func buildCommand(t *testing.T, build instructions.Stage) string {
	t.Helper()
	runs := commands[*instructions.RunCommand](build)
	last := runs[len(runs)-1].CmdLine
	if len(last) != 1 || !strings.Contains(last[0], "go build ") || !strings.Contains(last[0], " -o /out/netverdict ") {
		t.Fatalf("the build stage ends with %q, want one go build -o /out/netverdict", last)
	}
	return last[0]
}

// buildContext copies to a new directory what the build stage copies.
func buildContext(t *testing.T) string {
	t.Helper()
	stages, _ := parseDockerfile(t)
	src := t.TempDir()
	ignored := ignoreMatcher(t)
	for _, c := range commands[*instructions.CopyCommand](stages[0]) {
		for _, from := range c.SourcePaths {
			copyContext(t, ignored, from, src)
		}
	}
	return src
}

// followBuild runs the build stage's command in a directory that buildContext made.
func followBuild(t *testing.T, src, program, version string) {
	t.Helper()
	stages, _ := parseDockerfile(t)
	command := strings.Replace(buildCommand(t, stages[0]), "/out/netverdict", program, 1)
	cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
	cmd.Dir = src
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off", "TARGETOS=linux", "TARGETARCH="+runtime.GOARCH, "VERSION="+version)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

func ignoreMatcher(t *testing.T) *patternmatcher.PatternMatcher {
	t.Helper()
	patterns, err := ignorefile.ReadAll(strings.NewReader(readManifest(t, "Dockerfile.dockerignore")))
	if err != nil {
		t.Fatal(err)
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// copyContext copies what is not ignored below a path of the repository.
func copyContext(t *testing.T, ignored *patternmatcher.PatternMatcher, from, to string) {
	t.Helper()
	copied := 0
	err := filepath.WalkDir(filepath.Join(repository, from), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(repository, path)
		if err != nil {
			return err
		}
		if skip, err := ignored.MatchesOrParentMatches(name); err != nil || skip {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		copied++
		if err := os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, name), text, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	if copied == 0 {
		t.Errorf("COPY %s copies nothing", from)
	}
}

const imageVersion = "v0.0.0-test"

// image is the image's binary, built once by the first test that needs it.
var image struct {
	sync.Mutex
	program string
}

// builtProgram returns the path of the image's binary.
func builtProgram(t *testing.T) string {
	t.Helper()
	image.Lock()
	defer image.Unlock()
	if image.program == "" {
		path := filepath.Join(scratch, "netverdict")
		followBuild(t, buildContext(t), path, imageVersion)
		image.program = path
	}
	return image.program
}

func TestBuildStage(t *testing.T) {
	program := builtProgram(t)
	out, err := exec.CommandContext(t.Context(), program, "version").Output()
	if err != nil || !strings.HasPrefix(string(out), "netverdict "+imageVersion+" ") {
		t.Errorf("netverdict version: %v, %q, want %s", err, out, imageVersion)
	}
	file, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary is not static")
		}
	}
}

// TestBuildIsReproducible: another directory, the same bytes. (Compiled packages come
// from Go's cache, whose keys demand as much of the compiler; linking is done twice.)
func TestBuildIsReproducible(t *testing.T) {
	src, moved := buildContext(t), filepath.Join(t.TempDir(), "elsewhere")
	var built [2][]byte
	for i := range built {
		program := filepath.Join(t.TempDir(), "netverdict")
		followBuild(t, src, program, imageVersion)
		var err error
		if built[i], err = os.ReadFile(program); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := os.Rename(src, moved); err != nil {
				t.Fatal(err)
			}
			src = moved
		}
	}
	if !bytes.Equal(built[0], built[1]) {
		t.Errorf("two builds of the same sources differ (%d and %d bytes)", len(built[0]), len(built[1]))
	}
}

// TestArgumentsExist: the DaemonSets ask the binary for nothing that it does not know.
func TestArgumentsExist(t *testing.T) {
	for _, file := range []string{"install.yaml", "uninstall.yaml"} {
		pod := decode(t, readManifest(t, file)).agents.Spec.Template.Spec
		for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
			if len(c.Command) > 0 {
				continue // not netverdict
			}
			help := runProgram(t, c.Args[0], "--help")
			for _, arg := range c.Args[1:] {
				flag, _, _ := strings.Cut(arg, "=")
				if !strings.Contains(help, " "+flag+" ") {
					t.Errorf("%s: netverdict %s has no flag %s", file, c.Args[0], flag)
				}
			}
		}
	}
}

func runProgram(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), builtProgram(t), args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return string(out)
}
