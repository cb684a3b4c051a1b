//go:build linux

package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Image is what a node has of a container image: one static program.
type Image struct {
	// Repository is the image's name without tag and digest.
	Repository string
	// Program is a file of this machine, static, because it runs without any other.
	Program string
	// Path is where the program is inside the container.
	Path string
	// Entrypoint is run with Arguments if the pod says nothing else.
	Entrypoint, Arguments []string
}

// repository is an image's name without tag and digest.
func repository(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if colon := strings.LastIndex(image, ":"); colon > strings.LastIndex(image, "/") {
		image = image[:colon]
	}
	return image
}

// unpack makes a container's root directory. The program is linked, not copied,
// so dir must be on its file system.
func (i *Image) unpack(dir string, files map[string]string) error {
	program := filepath.Join(dir, i.Path)
	for _, d := range []string{filepath.Dir(program), filepath.Join(dir, "tmp"), filepath.Join(dir, "etc")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := os.Link(i.Program, program); err != nil {
		return fmt.Errorf("unpack image %s: %w", i.Repository, err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("unpack image %s: %w", i.Repository, err)
		}
	}
	return nil
}

// argv is what a container runs (the rules are those of a container's command and
// args in the API reference).
func (i *Image) argv(c *corev1.Container) []string {
	expand := func(words []string) []string { return expandAll(words, c.Env) }
	switch {
	case len(c.Command) > 0:
		return append(expand(c.Command), expand(c.Args)...)
	case len(c.Args) > 0:
		return append(append([]string{}, i.Entrypoint...), expand(c.Args)...)
	}
	return append(append([]string{}, i.Entrypoint...), i.Arguments...)
}

// expandAll replaces $(NAME) by the variable; $$ is a literal dollar sign, and what
// names no variable stays.
func expandAll(words []string, env []corev1.EnvVar) []string {
	pairs := []string{"$$", "$"}
	for _, e := range env {
		pairs = append(pairs, "$("+e.Name+")", e.Value)
	}
	replacer := strings.NewReplacer(pairs...)
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = replacer.Replace(w)
	}
	return out
}
