package kmod

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

func TestParseModinfo(t *testing.T) {
	data := "license=GPL\x00alias=pci:v00001AF4d*sv*sd*bc*sc*i*\x00depends=virtio_ring,virtio-pci\x00\x00alias=x\x00intree=Y"
	got := parseModinfo("m", []byte(data))
	want := Modinfo{Name: "m", Depends: []string{"virtio_ring", "virtio_pci"}, Aliases: []string{"pci:v00001AF4d*sv*sd*bc*sc*i*", "x"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := parseModinfo("m", []byte("depends=")); got.Depends != nil {
		t.Errorf("no dependencies: got %q", got.Depends)
	}
}

func TestName(t *testing.T) {
	for file, want := range map[string]string{
		"/lib/modules/6.1/kernel/arch/x86/kvm/kvm-amd.ko": "kvm_amd",
		"virtio_net.ko.xz": "virtio_net",
		"virtio-rng":       "virtio_rng",
	} {
		if got := Name(file); got != want {
			t.Errorf("Name(%q) = %q, want %q", file, got, want)
		}
	}
}

// modules depend on each other in a diamond, and two of them in a circle.
func modules() map[string]Modinfo {
	infos := make(map[string]Modinfo)
	for _, m := range []Modinfo{
		{Name: "ring"},
		{Name: "virtio", Depends: []string{"ring"}, Aliases: []string{"char-major-10-200"}},
		{Name: "pci", Depends: []string{"ring", "modern", "virtio", "built_in"}, Aliases: []string{"pci:v00001AF4d*sv*"}},
		{Name: "modern", Depends: []string{"ring"}},
		{Name: "a", Depends: []string{"b"}, Aliases: []string{"acpi*:PNP0C0C:*", "acpi*:PNP0C0D:*"}},
		{Name: "b", Depends: []string{"a"}},
		{Name: "tun", Aliases: []string{"devname:net/tun", "char-major-10-200"}},
		{Name: "squashfs", Aliases: []string{"fs-squashfs"}},
	} {
		infos[m.Name] = m
	}
	return infos
}

// Whoever loads a closure from its end to its start must find every module's
// needs loaded.
func TestClosureOrder(t *testing.T) {
	infos := modules()
	loaded := map[string]bool{"built_in": true}
	order := Closure(infos, "pci")
	if order[0] != "pci" || len(order) != 5 {
		t.Errorf("closure %q", order)
	}
	for _, name := range slices.Backward(order) {
		for _, d := range infos[name].Depends {
			if !loaded[d] {
				t.Errorf("%s comes before %s, which it needs, in %q", name, d, order)
			}
		}
		loaded[name] = true
	}
	if circle := Closure(infos, "a"); len(circle) != 2 {
		t.Errorf("circle: %q", circle)
	}
}

func readTestIndex(t *testing.T) *Index {
	t.Helper()
	dir := t.TempDir()
	dep, alias := Indexes(modules())
	for name, text := range map[string]string{DepFile: dep, AliasFile: alias} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	x, err := ReadIndex(dir)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestIndexRoundTrip(t *testing.T) {
	x := readTestIndex(t)
	if len(x.modules) != len(modules()) {
		t.Errorf("%d modules", len(x.modules))
	}
	// What the folder does not hold cannot be loaded.
	if deps := x.modules["pci"].deps; len(deps) != 3 || slices.Contains(deps, "built_in") {
		t.Errorf("pci needs %q", deps)
	}
	for request, want := range map[string][]string{
		"squashfs":    {"squashfs"},
		"fs-squashfs": {"squashfs"},
		"pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00": {"pci"},
		"pci:v00008086d00001041sv0":                             nil,
		"acpi:PNP0C0C:":                                         {"a"},
		"acpi:PNP0C0C:PNP0C0D:":                                 {"a"},
		"char-major-10-200":                                     {"tun", "virtio"},
		"nothing":                                               nil,
	} {
		got := x.Resolve(request)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("Resolve(%q) = %q, want %q", request, got, want)
		}
	}
	if nodes := x.nodes(); len(nodes) != 1 || nodes[0] != (Node{Path: "net/tun", Major: 10, Minor: 200}) {
		t.Errorf("nodes %+v", nodes)
	}
}

func TestReadIndexOfNoFolder(t *testing.T) {
	if _, err := ReadIndex(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestReadModinfoRejects(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.ko")
	if err := os.WriteFile(file, []byte("not a module"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadModinfo(file); err == nil {
		t.Error("a file that is no ELF was taken for a module")
	}
	if self, err := os.Executable(); err == nil {
		if _, err := ReadModinfo(self); err == nil {
			t.Error("a program was taken for a module")
		}
	}
}
