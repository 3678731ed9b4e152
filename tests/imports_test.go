package tests

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/godwit-vmm/godwit/"

// rules says what each part may import: prefixes of packages of this module and
// of others. The standard library is open to all. The longest key that is a
// prefix of the package counts.
var rules = map[string][]string{
	"kvm":              {"golang.org/x/sys/"},
	"memory":           {"golang.org/x/sys/"},
	"memory/uffd":      {"golang.org/x/sys/", module + "memory"},
	"vcpu":             {"golang.org/x/sys/", module + "kvm"},
	"devices":          {"golang.org/x/sys/", module + "memory", module + "devices"},
	"bootloader":       {module + "memory", module + "bootloader", "github.com/pierrec/lz4/"},
	"guest":            {"golang.org/x/sys/", "golang.org/x/term", module + "guest", module + "internal/durable", "github.com/u-root/", "mvdan.cc/sh/"},
	"guest/micro":      {},
	"guest/agent":      {"golang.org/x/sys/"},
	"migrate":          {"golang.org/x/sys/", module + "memory", module + "migrate", module + "internal/durable"},
	"migrate/stream":   {"golang.org/x/sys/", module + "memory", module + "migrate", "github.com/klauspost/compress/zstd"},
	"internal/durable": {},
	"internal/metrics": {"golang.org/x/sys/"},
	"internal/version": {},
}

// TestImports keeps the layers of the architecture apart (docs/design.md).
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "../...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := make(map[string]bool)
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		folder := strings.TrimPrefix(p.ImportPath, module)
		rule, allowed := ruleFor(folder)
		seen[rule] = true
		for _, i := range p.Imports {
			if !strings.Contains(strings.Split(i, "/")[0], ".") {
				continue // standard library
			}
			if strings.HasPrefix(i, module+"cmd/") {
				t.Errorf("%s imports %s: nothing imports a command", folder, i)
			}
			if strings.HasPrefix(i, module+"machine") && !mayAssemble(folder) {
				t.Errorf("%s imports %s: only cmd, internal and tests sit above machine", folder, i)
			}
			if rule != "" && !allowedImport(i, allowed) {
				t.Errorf("%s imports %s, which the rule for %s does not allow", folder, i, rule)
			}
		}
	}
	for rule := range rules {
		if !seen[rule] {
			t.Errorf("no package falls under the rule for %s", rule)
		}
	}
}

// TestUnsafeFenced keeps unsafe in files that say so in their names.
func TestUnsafeFenced(t *testing.T) {
	out, err := exec.Command("git", "-C", "..", "grep", "-lE", `^\s*"unsafe"|^import "unsafe"`, "--", "*.go").Output()
	if err != nil {
		t.Fatalf("git grep: %v", err)
	}
	for _, f := range strings.Fields(string(out)) {
		if !strings.HasSuffix(f, "_unsafe.go") && !strings.HasSuffix(f, "_test.go") {
			t.Errorf("%s imports unsafe: move that part to a file named *_unsafe.go", f)
		}
	}
}

func ruleFor(folder string) (rule string, allowed []string) {
	for r, a := range rules {
		if (folder == r || strings.HasPrefix(folder, r+"/")) && len(r) > len(rule) {
			rule, allowed = r, a
		}
	}
	return rule, allowed
}

func allowedImport(path string, allowed []string) bool {
	for _, a := range allowed {
		if strings.HasPrefix(path, a) {
			return true
		}
	}
	return false
}

func mayAssemble(folder string) bool {
	for _, above := range []string{"cmd/", "internal/", "tests", "machine"} {
		if strings.HasPrefix(folder, above) {
			return true
		}
	}
	return false
}
