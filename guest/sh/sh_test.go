package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRunStatus(t *testing.T) {
	script := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(script, []byte("[ \"$1\" = a ] && exit 5"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args   []string
		status int
		fails  bool
	}{
		{[]string{"-c", "exit 3"}, 3, false},
		{[]string{"-c", "[ $((6*7)) = 42 ]"}, 0, false},
		{[]string{"-c", "exit $2", "sh", "1", "9"}, 9, false},
		{[]string{"-c", "nosuchcommand 2>/dev/null"}, 127, false},
		{[]string{"-c", "if"}, 2, true},
		{[]string{"-c", "cat <<X && exit 4\nX\n"}, 4, false},
		{[]string{"-c", "cat <<X"}, 2, true},
		{[]string{"-c"}, 2, true},
		{[]string{script, "a"}, 5, false},
		{[]string{"/nonexistent"}, 127, true},
	}
	for _, test := range tests {
		status, err := run(test.args)
		if status != test.status || (err != nil) != test.fails {
			t.Errorf("sh %q: status %d, %v; want %d", test.args, status, err, test.status)
		}
	}
}

func TestComplete(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"apple", "apricot", "banana", "prog"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	tests := []struct{ line, want string }{
		{"ba", "banana "},
		{"ls ap", "ls ap"},
		{"ls app", "ls apple "},
		{"ls f", "ls folder/"},
		{"ls x", "ls x"},
		{"echo a; ls >b", "echo a; ls >banana "},
		{dir + "/pro", dir + "/prog "},
	}
	for _, test := range tests {
		got, pos, ok := complete(dir, test.line, len(test.line), '\t')
		if !ok || got != test.want || pos != len(got) {
			t.Errorf("%q: got %q, %d, %v; want %q", test.line, got, pos, ok, test.want)
		}
	}
	if got, pos, _ := complete(dir, "ls ba x", 5, '\t'); got != "ls banana  x" || pos != 10 {
		t.Errorf("in the middle: %q, %d", got, pos)
	}
	if _, _, ok := complete(dir, "ba", 2, 'x'); ok {
		t.Error("a letter was taken for a tab")
	}
}
