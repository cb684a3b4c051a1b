package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain lets the suite start this binary again as its load programs.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == loadVerb || os.Args[1] == acceptVerb) {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestSuite measures every kind of variant for a moment: all of them work, and
// each line of the result says what it should.
func TestSuite(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "netverdict")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./cmd/netverdict")
	build.Dir = "../.." // another module
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build netverdict: %v\n%s", err, out)
	}
	var out bytes.Buffer
	s := &suite{out: &out, log: t.Output(), rounds: 1, lasting: 200 * time.Millisecond, binary: binary, scenarios: scenarios}
	var err error
	s.variants, err = chooseVariants("none,conntrack,static-drop,c-accept-all,go-nfqueue-accept-all,netverdict-no-sets-10,iptables-10,ipset-10,nft-map-10", s.all())
	if err != nil {
		t.Fatal(err)
	}
	// All that applies to one that decides, also the flood that must not pass.
	s.variants[5].only = nil
	if err := s.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"connects/none ", "latency/conntrack ", "denied-flood/static-drop ", "stream/c-accept-all ", "one-way-udp/go-nfqueue-accept-all ",
		"denied-flood/netverdict-no-sets-10 ", "fresh-udp/iptables-10 ", "connects/ipset-10 ", "connects/nft-map-10 ",
	} {
		if !strings.Contains(out.String(), "BenchmarkNet/"+want) {
			t.Errorf("no line for %s in:\n%s", want, out.String())
		}
	}
}

func TestChoose(t *testing.T) {
	s := &suite{}
	if _, err := chooseVariants("none,nonsense", s.all()); err == nil || !strings.Contains(err.Error(), `"nonsense"`) {
		t.Errorf("unknown variant: %v", err)
	}
	for group, has := range map[string]string{"cost": "netverdict", "scale": "iptables-1000"} {
		chosen, err := chooseVariants(group, s.all())
		if err != nil || !strings.Contains(strings.Join(namesOf(chosen, func(v variant) string { return v.name }), " "), has) {
			t.Errorf("group %s: %v, %v", group, chosen, err)
		}
	}
}
