package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/internal/testenv"
)

// asShell has the test binary be the shell, in a terminal.
const asShell = "GODWIT_TEST_SH"

func TestMain(m *testing.M) {
	if os.Getenv(asShell) != "" {
		main()
	}
	os.Exit(m.Run())
}

// typed runs the shell in a terminal and types: each line when the shell prompts
// for it, with "# " or "> ". It returns what the terminal showed once the shell
// has ended.
func typed(t *testing.T, lines ...string) string {
	t.Helper()
	master, slave := openTerminal(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	shell := exec.Command(self)
	shell.Env = append(os.Environ(), asShell+"=1")
	shell.Stdin, shell.Stdout, shell.Stderr = slave, slave, slave
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { _ = shell.Process.Kill() })
	defer late.Stop()
	defer func() { _ = shell.Wait() }() // that it ended is all there is to know
	slave.Close()
	var shown bytes.Buffer
	for seen, buf := 0, make([]byte, 4096); ; {
		n, err := master.Read(buf)
		shown.Write(buf[:n])
		if err != nil {
			break // EIO: nobody has the terminal any more
		}
		rest := shown.Bytes()[seen:]
		if len(lines) > 0 && (bytes.HasSuffix(rest, []byte("# ")) || bytes.HasSuffix(rest, []byte("> "))) {
			seen = shown.Len()
			if _, err := master.WriteString(lines[0]); err != nil {
				t.Fatal(err)
			}
			lines = lines[1:]
		}
	}
	if len(lines) > 0 {
		t.Errorf("the shell ended before %q was typed:\n%s", lines, shown.String())
	}
	return shown.String()
}

// openTerminal gives both ends of a new terminal.
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		testenv.Lacks(t, "/dev/ptmx: %v", err)
	}
	master = os.NewFile(uintptr(fd), "terminal")
	t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// TestHereDocuments types here-documents. After each the shell goes on.
func TestHereDocuments(t *testing.T) {
	const endOfFile = "\x04"
	tests := map[string]struct {
		lines []string
		want  string
	}{
		"lines":            {[]string{"cat <<X\r", "one $((1+1))\r", "X\r"}, "one 2\r\n"},
		"no lines":         {[]string{"cat <<X && echo end$((2))\r", "X\r"}, "end2\r\n"},
		"no lines, tabs":   {[]string{"cat <<-X && echo end$((2))\r", "X\r"}, "end2\r\n"},
		"in a pipe":        {[]string{"cat <<X | cat && echo end$((2))\r", "X\r"}, "end2\r\n"},
		"quoted delimiter": {[]string{"cat <<'E F'\r", "$(\r", "E F\r"}, "\n$(\r\n"},
		"no delimiter":     {[]string{"cat <<''\r", "one\r", "\r"}, "\none\r\n"},
		"end of file":      {[]string{"cat <<X\r", endOfFile}, "unclosed here-document"},
		"within eval":      {[]string{"eval 'cat <<X\r", "X'\r"}, "the interpreter cannot do this"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			// Not what is echoed, but what comes of it.
			shown := typed(t, append(test.lines, "echo after$((40+2))\r", endOfFile)...)
			for _, want := range []string{test.want, "after42\r\n"} {
				if !strings.Contains(shown, want) {
					t.Errorf("no %q in:\n%s", want, shown)
				}
			}
		})
	}
}
