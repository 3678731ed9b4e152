package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestEscape(t *testing.T) {
	tests := []struct {
		name  string
		typed []string // one element a read
		want  string
		quit  bool
	}{
		{"plain", []string{"ls\r"}, "ls\r", false},
		{"quit", []string{"ab\x01xcd"}, "ab", true},
		{"quit in two reads", []string{"ab\x01", "x"}, "ab", true},
		{"capital", []string{"\x01X"}, "", true},
		{"one for the guest", []string{"\x01\x01x"}, "\x01x", false},
		{"other key", []string{"\x01b"}, "\x01b", false},
		{"other key in two reads", []string{"\x01", "b"}, "\x01b", false},
		{"x alone", []string{"x"}, "x", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var e escape
			var got []byte
			quit := false
			for _, read := range tt.typed {
				var out []byte
				if out, quit = e.filter([]byte(read)); !quit {
					got = append(got, out...)
					continue
				}
				got = append(got, out...)
				break
			}
			if string(got) != tt.want || quit != tt.quit {
				t.Errorf("%q, quit %v, want %q, %v", got, quit, tt.want, tt.quit)
			}
		})
	}
}

func TestEscapeReader(t *testing.T) {
	text := strings.Repeat("a\x01\x01b\x01c", 1000)
	want := strings.ReplaceAll(text, "\x01\x01", "\x01")
	for name, in := range map[string]io.Reader{
		"whole":        strings.NewReader(text),
		"byte by byte": iotest.OneByteReader(strings.NewReader(text)),
	} {
		r := &filteredReader{in: in, filter: new(escape).filter, quit: func() { t.Error(name, "quit") }}
		got, err := io.ReadAll(r)
		if err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(want))
		}
	}
	quit := false
	r := &filteredReader{in: strings.NewReader("ab\x01xcd"), filter: new(escape).filter, quit: func() { quit = true }}
	if _, err := io.ReadAll(r); err != nil || !quit {
		t.Errorf("quit %v, %v", quit, err)
	}
}

func TestTail(t *testing.T) {
	w := &tail{limit: 10}
	var out bytes.Buffer
	if w.dump(&out); out.Len() != 0 {
		t.Errorf("an empty console is dumped as %q", out.String())
	}
	for range 1000 {
		io.WriteString(w, "0123456")
	}
	io.WriteString(w, "the end")
	w.dump(&out)
	if !strings.Contains(out.String(), "\n456the end\n") {
		t.Errorf("dumped %q", out.String())
	}
	if len(w.buf) > 2*w.limit {
		t.Errorf("%d bytes kept", len(w.buf))
	}
}

func TestTilde(t *testing.T) {
	tests := []struct {
		name  string
		typed []string // one element a read
		want  string
		quit  bool
	}{
		{"plain", []string{"ls ~\r"}, "ls ~\r", false},
		{"at once", []string{"~."}, "", true},
		{"after a line", []string{"ls\r~.x"}, "ls\r", true},
		{"in two reads", []string{"ls\n~", "."}, "ls\n", true},
		{"inside a line", []string{"ls ~."}, "ls ~.", false},
		{"one for the guest", []string{"~~."}, "~.", false},
		{"home", []string{"~/x\r"}, "~/x\r", false},
		{"an empty line", []string{"~\r~."}, "~\r", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var e tilde
			var got []byte
			quit := false
			for _, read := range tt.typed {
				var out []byte
				out, quit = e.filter([]byte(read))
				if got = append(got, out...); quit {
					break
				}
			}
			if string(got) != tt.want || quit != tt.quit {
				t.Errorf("%q, quit %v, want %q, %v", got, quit, tt.want, tt.quit)
			}
		})
	}
}
