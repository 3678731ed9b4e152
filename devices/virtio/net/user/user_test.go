package user

import (
	"github.com/godwit-vmm/godwit/internal/testenv"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
)

// The network itself is tested in internal/usernet, which has the program.

func TestCheck(t *testing.T) {
	good := Forward{Protocol: "tcp", Host: netip.MustParseAddrPort("127.0.0.1:8080"), Guest: 80}
	change := func(f func(*Forward)) Forward {
		c := good
		f(&c)
		return c
	}
	for _, test := range []struct {
		s    Settings
		want string // "": they are good
	}{
		{Settings{}, ""},
		{Settings{MTU: MaxMTU, Forwards: []Forward{good}}, ""},
		{Settings{MTU: MinMTU - 1}, "MTU 575"},
		{Settings{MTU: MaxMTU + 1}, "MTU 65522"},
		{Settings{Forwards: []Forward{good, change(func(f *Forward) { f.Protocol = "sctp" })}}, "want tcp or udp"},
		{Settings{Forwards: []Forward{change(func(f *Forward) { f.Host = netip.AddrPort{} })}}, "an address and port"},
		{Settings{Forwards: []Forward{change(func(f *Forward) { f.Host = netip.AddrPortFrom(f.Host.Addr(), 0) })}}, "an address and port"},
		{Settings{Forwards: []Forward{change(func(f *Forward) { f.Guest = 0 })}}, "a port of the guest"},
	} {
		err := test.s.Check()
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("Check(%+v) = %v, want %q", test.s, err, test.want)
		}
	}
	if got, want := good.String(), "tcp:127.0.0.1:8080:80"; got != want {
		t.Errorf("forward %s, want %s", got, want)
	}
}

// TestLastWords tests that a program that ends at once is quoted.
func TestLastWords(t *testing.T) {
	path, err := exec.LookPath("ls")
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	t.Setenv("LC_ALL", "C")
	t.Setenv("PATH", "")
	// It is not told anything on its command line, and writes no answer.
	if _, err := Start(Config{Program: path}); err == nil || !strings.Contains(err.Error(), path+" ended") {
		t.Errorf("error %v", err)
	}
}

func TestWordsAreBounded(t *testing.T) {
	var w words
	for range 100 {
		if n, err := w.Write([]byte(strings.Repeat("x", 1000))); n != 1000 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if got := len(w.text()); got != wordsSize {
		t.Errorf("%d bytes are kept, want %d", got, wordsSize)
	}
}
