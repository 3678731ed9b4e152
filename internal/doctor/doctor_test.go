package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// root makes a file system with these files for Host.Root.
func root(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const (
	pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"
	thp  = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
)

func TestFindings(t *testing.T) {
	look := map[string]func(Host) Finding{"pool": Host.hugePages, "thp": Host.transparentHugePages, "tun": Host.tun}
	tests := []struct {
		what, name string
		files      map[string]string
		verdict    Verdict
		found      string
	}{
		{"pool", "none", nil, Limited, "no pool"},
		{"pool", "empty", map[string]string{pool: "0\n"}, Limited, "no 2 MiB pages"},
		{"pool", "garbage", map[string]string{pool: "many\n"}, Limited, "no pool"},
		{"pool", "some", map[string]string{pool: "64\n"}, OK, "128 MiB free"},
		{"thp", "none", nil, Limited, "none for shared memory"},
		{"thp", "never", map[string]string{thp: "always advise [never] deny\n"}, Limited, "[never]"},
		{"thp", "advise", map[string]string{thp: "always [advise] never deny\n"}, OK, "[advise]"},
		{"tun", "none", nil, Limited, "no such file"},
		{"tun", "there", map[string]string{"/dev/net/tun": ""}, OK, "may use it"},
	}
	for _, tt := range tests {
		f := look[tt.what](Host{Root: root(t, tt.files)})
		if f.Verdict != tt.verdict || !strings.Contains(f.Found, tt.found) {
			t.Errorf("%s, %s: %+v, want %s and %q", tt.what, tt.name, f, tt.verdict, tt.found)
		}
	}
}

func TestNoKVM(t *testing.T) {
	findings := Examine(Host{KVM: filepath.Join(t.TempDir(), "kvm")})
	if CanBoot(findings) {
		t.Error("guests are said to boot without KVM")
	}
	if f := findings[0]; f.Verdict != Missing || !strings.Contains(f.Advice, "godwit-lab") {
		t.Errorf("%+v, want a way out", f)
	}
}

// TestAdvice checks that whatever is not well comes with something to do.
func TestAdvice(t *testing.T) {
	for _, f := range Examine(Host{}) {
		if f.Name == "" || f.Found == "" {
			t.Errorf("a finding says nothing: %+v", f)
		}
		if f.Verdict == Missing && f.Advice == "" {
			t.Errorf("no advice: %+v", f)
		}
	}
}
