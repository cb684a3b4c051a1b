package hook

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// chooseBackend returns the tables of the families in the backend that is
// wanted.
func chooseBackend(cfg *Config) ([]*tables, error) {
	backend := cfg.Backend
	if backend == Auto {
		backend = kubeletBackend(cfg)
	}
	if backend == Auto {
		var err error
		if backend, err = pathBackend(cfg); err != nil {
			return nil, err
		}
	}
	var all []*tables
	var missing []error
	for _, f := range cfg.families() {
		t, err := findTables(f, backend, cfg.pace)
		all, missing = append(all, t), append(missing, err)
	}
	return all, errors.Join(missing...)
}

// hints are chains that the kubelet makes in the table mangle of the backend
// that it uses, for others to find (KEP-3178). The second is older.
var hints = []string{"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"}

// kubeletBackend returns Auto if no backend has the kubelet's hint.
func kubeletBackend(cfg *Config) Backend {
	for _, b := range [...]Backend{NFT, Legacy} {
		for _, f := range [...]family{ipv4, ipv6} {
			t, err := findTables(f, b, cfg.pace)
			if err != nil || !t.inUse() {
				continue
			}
			s, err := t.read()
			if err == nil && slices.ContainsFunc(hints, func(h string) bool { return slices.Contains(s.chains, h) }) {
				return b
			}
		}
	}
	return Auto
}

// inUse reports whether looking at the table would not make it: reading a
// legacy table loads it into the namespace, and with it its hooks, for ever.
func (t *tables) inUse() bool {
	if t.backend != Legacy {
		return true
	}
	file := "/proc/thread-self/net/ip_tables_names"
	if t.family == ipv6 {
		file = "/proc/thread-self/net/ip6_tables_names"
	}
	loaded, err := os.ReadFile(file)
	return err == nil && slices.Contains(strings.Fields(string(loaded)), mangle)
}

// pathBackend is the backend of the commands in PATH.
func pathBackend(cfg *Config) (Backend, error) {
	var failed []error
	for _, f := range cfg.families() {
		path, err := exec.LookPath(f.commands() + "-restore")
		if err == nil {
			return backendOf(path, f, cfg.pace)
		}
		failed = append(failed, err)
	}
	return Auto, missingCommand(errors.Join(failed...))
}

// backendOf asks a command for its backend: "iptables-restore v1.8.9 (nf_tables)".
// Versions before 1.8 had but the legacy one and do not say so.
func backendOf(path string, f family, p *pace) (Backend, error) {
	t := tables{family: f, pace: p}
	out, err := t.run("", path, "--version")
	if err != nil {
		return Auto, fmt.Errorf("%s --version: %w", path, err)
	}
	if strings.Contains(string(out), "nf_tables") {
		return NFT, nil
	}
	return Legacy, nil
}

// findTables finds the commands of a backend. They may be called
// iptables-nft-restore or, when nothing else is installed, iptables-restore.
func findTables(f family, b Backend, p *pace) (*tables, error) {
	t := &tables{family: f, backend: b, pace: p}
	var err error
	if t.restore, err = t.find("restore"); err != nil {
		return nil, err
	}
	if t.save, err = t.find("save"); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *tables) find(verb string) (path string, err error) {
	explicit := fmt.Sprintf("%s-%v-%s", t.family.commands(), t.backend, verb)
	if path, err = exec.LookPath(explicit); err == nil {
		return path, nil
	}
	plain, plainErr := exec.LookPath(t.family.commands() + "-" + verb)
	if plainErr != nil {
		return "", missingCommand(errors.Join(err, plainErr))
	}
	have, haveErr := backendOf(plain, t.family, t.pace)
	if haveErr != nil {
		return "", haveErr
	}
	if have != t.backend {
		return "", missingCommand(fmt.Errorf("%w; %s is for the backend %v", err, filepath.Base(plain), have))
	}
	return plain, nil
}

func missingCommand(err error) error {
	return fmt.Errorf("%w (install the package iptables, or correct PATH, which is %q)", err, os.Getenv("PATH"))
}
