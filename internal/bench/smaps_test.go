package bench

import (
	"os"
	"strings"
	"testing"
)

const smaps = `00400000-00600000 r-xp 00000000 fe:00 1234                       /usr/bin/vmm
Size:               2048 kB
KernelPageSize:        4 kB
Rss:                 100 kB
Pss:                  60 kB
Shared_Clean:         90 kB
Private_Clean:         4 kB
Private_Dirty:         6 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0008000000 rw-s 00000000 00:01 99                 /memfd:my guest (deleted)
Size:             131072 kB
Rss:                2000 kB
Private_Clean:         0 kB
Private_Dirty:      2000 kB
VmFlags: rd wr sh
7f1000000000-7f1000001000 rw-p 00000000 00:00 0
Rss:                   8 kB
Private_Clean:         0 kB
Private_Dirty:         8 kB
`

func isMemfd(name string) bool { return strings.HasPrefix(name, "/memfd:") }

func TestParseSmaps(t *testing.T) {
	got, err := parseSmaps(strings.NewReader(smaps), isMemfd)
	want := resident{rss: 108, private: 18, guest: 2000}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestParseSmapsRejects(t *testing.T) {
	for _, line := range []string{"Rss: 12 MB", "Rss: x kB", "Rss:", "Rss: -1 kB"} {
		if _, err := parseSmaps(strings.NewReader(line), isMemfd); err == nil {
			t.Errorf("line %q went through", line)
		}
	}
}

func TestResidentMemoryOfMyself(t *testing.T) {
	got, err := residentMemory(os.Getpid(), func(string) bool { return false })
	if err != nil || got.rss < 1024 || got.private == 0 || got.private > got.rss || got.guest != 0 {
		t.Errorf("got %+v KiB, %v: not what a Go process takes", got, err)
	}
}
