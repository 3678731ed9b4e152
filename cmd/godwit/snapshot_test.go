package main

import (
	"bytes"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestPairs(t *testing.T) {
	got, err := pairs("--disk", []string{"0=/a", "root=/b=c"})
	if want := map[string]string{"0": "/a", "root": "/b=c"}; err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, text := range []string{"", "0", "0=", "=/a"} {
		if _, err := pairs("--disk", []string{text}); err == nil || !strings.Contains(err.Error(), "--disk "+text+": want ID=VALUE") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 bytes", 1023: "1023 bytes", 1024: "1.0 KiB", 1536 << 10: "1.5 MiB", 8 << 30: "8.0 GiB",
	} {
		if got := size(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

// goldenSnapshot is one of the first version of the format.
const goldenSnapshot = "../../migrate/snapshot/testdata/v1.0/"

func runSnapshot(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := newSnapshot()
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(io.Discard)
	c.SilenceErrors, c.SilenceUsage = true, true
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

func TestSnapshotInfo(t *testing.T) {
	out, err := runSnapshot(t, "info", goldenSnapshot+"full")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"guest      ", "kind       full, format 1.0, ID "} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if out, err = runSnapshot(t, "info", "--json", goldenSnapshot+"diff"); err != nil || !strings.Contains(out, `"kind": "diff"`) {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := runSnapshot(t, "info", t.TempDir()); err == nil {
		t.Error("an empty folder is a snapshot")
	}
}

func TestSnapshotVerify(t *testing.T) {
	out, err := runSnapshot(t, "verify", goldenSnapshot+"full", goldenSnapshot+"diff")
	if want := goldenSnapshot + "full: good\n" + goldenSnapshot + "diff: good\n"; err != nil || out != want {
		t.Errorf("%v, %q, want %q", err, out, want)
	}
	if _, err := runSnapshot(t, "verify", t.TempDir()); err == nil {
		t.Error("an empty folder is a snapshot")
	}
}

func TestRestoreArgs(t *testing.T) {
	for _, test := range []struct {
		o    cloneOptions
		want string
	}{
		{cloneOptions{dir: "/s", ephemeral: true}, "--detach --ephemeral --name a --new-mac /s restore"},
		{cloneOptions{dir: "/s", overlay: "/o", wait: true, allowSoftware: true}, "--allow-software-kvm --name --new-mac --overlay --wait /o /s a restore"},
	} {
		args := test.o.restoreArgs("a")
		if args[0] != "restore" || args[1] != "/s" || !slices.Contains(args, "a") {
			t.Errorf("%q", args)
		}
		words := slices.Sorted(slices.Values(args))
		want := strings.Fields(test.want)
		slices.Sort(want)
		if !slices.Equal(words, want) {
			t.Errorf("%q, want %q", words, want)
		}
	}
}

// TestRestoreVsock: a guest that had no vsock device gets none, and one that had it gets
// it, without the user saying so.
func TestRestoreVsock(t *testing.T) {
	s := newSite(t)
	for name, args := range map[string][]string{"with": nil, "without": {"--vsock", "off"}} {
		s.boot(name, args...)
		path := filepath.Join(t.TempDir(), "saved")
		s.must("snapshot", name, path)
		s.must("restore", path, "--allow-software-kvm", "--detach", "--name", name+"-2")
		s.sound(name + "-2")
	}
}
