// Package kmod indexes and loads Linux kernel modules.
//
// A module folder holds uncompressed .ko files and two indexes in the format
// of depmod: modules.dep (each module with everything it needs) and
// modules.alias (which module serves which device). Indexes makes them on the
// host; in the guest a Loader reads them and loads modules by name, by alias,
// or for all devices that sysfs lists.
package kmod

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// The indexes in a module folder, as depmod names them.
const (
	DepFile   = "modules.dep"
	AliasFile = "modules.alias"
)

// Index says what is in a module folder.
type Index struct {
	// modules by kernel name.
	modules map[string]module
	// aliases by what they start with up to the colon, which for devices is
	// the bus. A starting guest asks for every device.
	aliases map[string][]alias
}

type module struct {
	file string
	// deps are all modules needed, nearest first: loading them from the
	// last to the first meets every dependency.
	deps []string
}

type alias struct{ pattern, name string }

// Indexes gives the content of modules.dep and modules.alias for a folder that
// holds each of the modules as NAME.ko.
func Indexes(infos map[string]Modinfo) (dep, alias string) {
	var d, a strings.Builder
	for _, name := range slices.Sorted(maps.Keys(infos)) {
		d.WriteString(name + ".ko:")
		for _, needed := range Closure(infos, name)[1:] {
			if _, ok := infos[needed]; ok {
				d.WriteString(" " + needed + ".ko")
			}
		}
		d.WriteByte('\n')
		for _, pattern := range infos[name].Aliases {
			fmt.Fprintf(&a, "alias %s %s\n", pattern, name)
		}
	}
	return d.String(), a.String()
}

// Closure lists name and every module it needs, each before the ones that it
// depends on itself. Names that infos lacks are taken to be built into the
// kernel.
func Closure(infos map[string]Modinfo, name string) []string {
	// Depth-first post-order puts dependencies first; a module is marked
	// before its dependencies are visited, so a cycle ends.
	var order []string
	seen := make(map[string]bool)
	var visit func(string)
	visit = func(n string) {
		if seen[n] {
			return
		}
		seen[n] = true
		for _, d := range infos[n].Depends {
			visit(d)
		}
		order = append(order, n)
	}
	visit(name)
	slices.Reverse(order)
	return order
}

// ReadIndex reads the indexes of a module folder.
func ReadIndex(dir string) (*Index, error) {
	x := &Index{modules: make(map[string]module), aliases: make(map[string][]alias)}
	err := eachLine(filepath.Join(dir, DepFile), func(line string) {
		file, rest, ok := strings.Cut(line, ":")
		if !ok {
			return
		}
		m := module{file: filepath.Join(dir, file)}
		for _, d := range strings.Fields(rest) {
			m.deps = append(m.deps, Name(d))
		}
		x.modules[Name(file)] = m
	})
	if err != nil {
		return nil, err
	}
	err = eachLine(filepath.Join(dir, AliasFile), func(line string) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "alias" {
			bus := busOf(f[1])
			x.aliases[bus] = append(x.aliases[bus], alias{pattern: f[1], name: Name(f[2])})
		}
	})
	return x, err
}

func eachLine(file string, do func(string)) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		if line := scanner.Text(); !strings.HasPrefix(line, "#") {
			do(line)
		}
	}
	return scanner.Err()
}

// busOf is the bus that an alias or a pattern of aliases is about: pci for
// pci:v00001AF4d*, acpi for acpi*:PNP0C0C:*, and nothing for an alias that does
// not name a device.
func busOf(alias string) string {
	bus, _, found := strings.Cut(alias, ":")
	if !found {
		return ""
	}
	return strings.TrimSuffix(bus, "*")
}

// Resolve lists the modules that a module name or a device's modalias asks
// for. An empty list means that none is here.
func (x *Index) Resolve(request string) []string {
	if name := Name(request); x.modules[name].file != "" {
		return []string{name}
	}
	var names []string
	for _, a := range x.aliases[busOf(request)] {
		// An alias never contains a slash, so that path.Match is
		// fnmatch here.
		if ok, err := path.Match(a.pattern, request); err == nil && ok && !slices.Contains(names, a.name) {
			names = append(names, a.name)
		}
	}
	return names
}

// nodes pairs the aliases devname:PATH and char-major-MAJOR-MINOR of the same
// module.
func (x *Index) nodes() []Node {
	paths := make(map[string]string)
	for _, a := range x.aliases["devname"] {
		paths[a.name] = strings.TrimPrefix(a.pattern, "devname:")
	}
	var list []Node
	for _, a := range x.aliases[""] {
		n := Node{Path: paths[a.name]}
		if _, err := fmt.Sscanf(a.pattern, "char-major-%d-%d", &n.Major, &n.Minor); err == nil && n.Path != "" {
			list = append(list, n)
		}
	}
	return list
}
