package kmod

import (
	"bytes"
	"debug/elf"
	"fmt"
	"path/filepath"
	"strings"
)

// Modinfo is what a module says about itself in its .modinfo section.
type Modinfo struct {
	// Name as the kernel spells it, with underscores only.
	Name string
	// Depends are the modules that must be loaded before, direct ones
	// only.
	Depends []string
	// Aliases are the patterns of the devices and requests that the
	// module serves.
	Aliases []string
}

// Name is the kernel's name of a module file: without folder and extension,
// and with underscores, which the kernel takes as equal to dashes.
func Name(file string) string {
	base := filepath.Base(file)
	if i := strings.Index(base, ".ko"); i >= 0 {
		base = base[:i]
	}
	return strings.ReplaceAll(base, "-", "_")
}

// ReadModinfo reads the .modinfo section of an uncompressed module file.
func ReadModinfo(file string) (Modinfo, error) {
	f, err := elf.Open(file)
	if err != nil {
		return Modinfo{}, fmt.Errorf("kernel module %s: %w", file, err)
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return Modinfo{}, fmt.Errorf("kernel module %s: no .modinfo section", file)
	}
	data, err := section.Data()
	if err != nil {
		return Modinfo{}, fmt.Errorf("kernel module %s: .modinfo: %w", file, err)
	}
	return parseModinfo(Name(file), data), nil
}

// parseModinfo reads the NUL-separated key=value strings of a .modinfo
// section.
func parseModinfo(name string, data []byte) Modinfo {
	info := Modinfo{Name: name}
	for _, entry := range bytes.Split(data, []byte{0}) {
		key, value, _ := strings.Cut(string(entry), "=")
		switch key {
		case "depends":
			for _, d := range strings.Split(value, ",") {
				if d != "" {
					info.Depends = append(info.Depends, Name(d))
				}
			}
		case "alias":
			info.Aliases = append(info.Aliases, value)
		}
	}
	return info
}
