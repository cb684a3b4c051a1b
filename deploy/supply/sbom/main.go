// Sbom adds the Debian packages of an image to the bill of materials of the program
// that the image holds.
//
//	cyclonedx-gomod bin … ─▶ modules ─┐
//	                                  ├─▶ one CycloneDX document
//	image's /var/lib/dpkg/status ─────┘
package main

import (
	"bufio"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/CycloneDX/cyclonedx-go"
)

func main() {
	modules := flag.String("modules", "", "`file` that cyclonedx-gomod bin -json wrote (required)")
	status := flag.String("dpkg", "", "dpkg status `file` of the image; none: only the modules")
	release := flag.String("distro", "debian-12", "the image's distribution and release, as a package URL has it")
	flag.Parse()
	if err := run(*modules, *status, *release, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(modules, status, distro string, out io.Writer) error {
	bom, err := readModules(modules)
	if err != nil {
		return fmt.Errorf("read the modules: %w", err)
	}
	if status != "" {
		packages, err := readPackages(status, distro)
		if err != nil {
			return fmt.Errorf("read the image's packages: %w", err)
		}
		all := append(*bom.Components, packages...)
		bom.Components = &all
	}
	return cyclonedx.NewBOMEncoder(out, cyclonedx.BOMFileFormatJSON).SetPretty(true).Encode(bom)
}

func readModules(path string) (*cyclonedx.BOM, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	bom := new(cyclonedx.BOM)
	if err := cyclonedx.NewBOMDecoder(f, cyclonedx.BOMFileFormatJSON).Decode(bom); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if bom.Components == nil || len(*bom.Components) == 0 {
		return nil, fmt.Errorf("%s lists no module: was the program built with -buildvcs=false -ldflags=-buildid= only, and not stripped of its build information?", path)
	}
	return bom, nil
}

// readPackages reads dpkg's status file (dpkg-query(1), deb-control(5)): paragraphs of
// "Field: value", continued on lines that begin with white space.
func readPackages(path, distro string) ([]cyclonedx.Component, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []cyclonedx.Component
	fields := map[string]string{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for more := true; more; {
		more = lines.Scan()
		line := lines.Text()
		if !more || line == "" {
			if strings.HasSuffix(fields["Status"], " installed") {
				list = append(list, component(fields, distro))
			}
			fields = map[string]string{}
			continue
		}
		if name, value, ok := strings.Cut(line, ": "); ok && line[0] != ' ' && line[0] != '\t' {
			fields[name] = value
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(list) == 0 {
		return nil, errors.New(path + ": no package is installed; want the image's /var/lib/dpkg/status")
	}
	slices.SortFunc(list, func(a, b cyclonedx.Component) int { return cmp.Compare(a.BOMRef, b.BOMRef) })
	return list, nil
}

func component(fields map[string]string, distro string) cyclonedx.Component {
	// https://github.com/package-url/purl-spec: in a version, ":" and "+" are escaped.
	version := strings.NewReplacer(":", "%3A", "+", "%2B", "~", "~").Replace(fields["Version"])
	purl := fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s&distro=%s", strings.ReplaceAll(fields["Package"], "+", "%2B"), version, fields["Architecture"], distro)
	return cyclonedx.Component{
		BOMRef: purl, PackageURL: purl, Type: cyclonedx.ComponentTypeLibrary, Scope: cyclonedx.ScopeRequired,
		Name: fields["Package"], Version: fields["Version"],
	}
}
