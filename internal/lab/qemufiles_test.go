package lab

import (
	"slices"
	"strings"
	"testing"
)

func TestParseLDD(t *testing.T) {
	out := `	linux-vdso.so.1 (0x00007ffd0d5f2000)
	libpixman-1.so.0 => /lib/x86_64-linux-gnu/libpixman-1.so.0 (0x00007f3b3e5c0000)
	libmissing.so => not found
	/lib64/ld-linux-x86-64.so.2 (0x00007f3b40a5e000)
`
	want := []string{"/lib/x86_64-linux-gnu/libpixman-1.so.0", "/lib64/ld-linux-x86-64.so.2"}
	if got := parseLDD(out); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// QEMU must find its libraries, its firmware and KVM in a host.
func TestQEMUInAHost(t *testing.T) {
	needLab(t)
	files, err := QEMUFiles()
	if err != nil {
		t.Fatal(err)
	}
	h := start(t, Options{CPUs: 1, Files: files})
	out := output(t, h, "sh", "-c", "(echo quit; echo quit) | "+emulator+" -accel kvm -machine q35 -nodefaults -display none -monitor stdio -S")
	if !strings.Contains(out, "QEMU") {
		t.Errorf("its monitor says %q", out)
	}
}
