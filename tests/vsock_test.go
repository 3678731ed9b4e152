package tests

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/godwit-vmm/godwit/internal/lab"
)

// guestInBackground boots a guest with --wait on a host that is this test's alone
// until release, and powers it off at the end.
func guestInBackground(t *testing.T, name string) runner {
	t.Helper()
	r, release := host(t)
	t.Cleanup(release)
	on(t, r, nil, "boot", "--name", name, "--memory", "256M", "--wait").expect(t, 0, name+"\n")
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), bootTimeout)
		defer cancel()
		// However the command ends, the guest does.
		_, _ = run(ctx, r, nil, io.Discard, io.Discard, "exec", name, "--", "poweroff")
	})
	return r
}

// on runs godwit on a certain host.
func on(t *testing.T, r runner, stdin io.Reader, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status, err := run(t.Context(), r, stdin, &stdout, &stderr, args...)
	if err != nil {
		t.Fatalf("godwit %s: %v\nstdout:\n%s\nstderr:\n%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return result{args, stdout.String(), stderr.String(), status}
}

// TestRunningGuest has the commands that work on a guest in the background.
func TestRunningGuest(t *testing.T) {
	t.Parallel()
	r := guestInBackground(t, "running")
	guest := func(t *testing.T, script string) result {
		return on(t, r, nil, "exec", "running", "--", "sh", "-c", script)
	}
	t.Run("exec", func(t *testing.T) {
		guest(t, "echo hello; exit 3").expect(t, 3, "hello\n")
		guest(t, "kill -9 $$").expect(t, 128+9, "")
		if r := guest(t, "echo oops >&2"); r.status != 0 || r.stdout != "" || r.stderr != "oops\n" {
			t.Errorf("%v, want the text on stderr", r)
		}
		on(t, r, nil, "exec", "running", "no-such-command").expect(t, 127, "")
		on(t, r, nil, "exec", "--env", "A=b c", "--workdir", "/tmp", "running", "--", "sh", "-c", `echo "$A"; pwd`).expect(t, 0, "b c\n/tmp\n")
		if r := on(t, r, nil, "exec", "-t", "running", "--", "tty"); r.status != 0 || !strings.HasPrefix(r.stdout, "/dev/pts/") {
			t.Errorf("%v, want the name of a terminal", r)
		}
	})
	t.Run("exec with input", func(t *testing.T) {
		text := strings.Repeat("0123456789abcdef\n", 20000)
		on(t, r, strings.NewReader(text), "exec", "running", "--", "cat").expect(t, 0, text)
	})
	t.Run("exec with a signal", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
		defer cancel()
		said := newTypist([]step{{"ready", ""}})
		p, err := r.start(ctx, nil, said, io.Discard, "exec", "running", "--", "sh", "-c", "echo ready; exec sleep 1000")
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-said.done:
		case <-ctx.Done():
		}
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if status, err := p.Wait(); status != 128+int(syscall.SIGTERM) || err != nil {
			t.Errorf("status %d, %v; it said %q", status, err, said.text())
		}
	})
	t.Run("cp", func(t *testing.T) {
		here := hostFolder(t, r, "cp")
		guest(t, "mkdir -p /root/a/sub && echo 1 > /root/a/one && echo 2 > /root/a/sub/two && ln -s one /root/a/link && chmod 0750 /root/a/sub").expect(t, 0, "")
		on(t, r, nil, "cp", "running:/root/a", here+"/copy").expect(t, 0, "")
		on(t, r, nil, "cp", here+"/copy", "running:/root").expect(t, 0, "")
		copied := guest(t, "cd /root/copy && cat one sub/two link && readlink link && ls -ld sub")
		if want := "1\n2\n1\none\ndrwxr-x---"; copied.status != 0 || !strings.HasPrefix(copied.stdout, want) {
			t.Errorf("%v, want %q", copied, want)
		}
		on(t, r, nil, "cp", "running:/no/such/file", here).expectError(t, "no such file")
		on(t, r, nil, "cp", here+"/copy/one", "running:/no/such/folder/").expectError(t, "no")
		on(t, r, nil, "cp", here+"/copy/one", here+"/x").expectError(t, "NAME:PATH")
	})
	t.Run("names", func(t *testing.T) {
		on(t, r, nil, "boot", "--name", "running", "--memory", "256M").expectError(t, "is running already")
		on(t, r, nil, "boot", "--name", "../running").expectError(t, "letters")
		on(t, r, nil, "exec", "other", "--", "true").expectError(t, "is not running")
		on(t, r, nil, "wait", "other").expectError(t, "is not running")
		on(t, r, nil, "wait", "running", "--timeout", "10s").expect(t, 0, "")
	})
	t.Run("end", func(t *testing.T) {
		// The one that asks for it has done what it was to; another is cut off.
		ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
		defer cancel()
		said := newAwaiter("ready\n")
		var stderr bytes.Buffer
		p, err := r.start(ctx, nil, said, &stderr, "exec", "running", "--", "sh", "-c", "echo ready; exec sleep 1000")
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-said.done:
		case <-ctx.Done():
		}
		guest(t, "poweroff").expect(t, 0, "")
		status, err := p.Wait()
		if want := "guest running powers off, which ended the command\n"; status != 125 || err != nil || !strings.HasSuffix(stderr.String(), want) {
			t.Errorf("another command: status %d, %v, %q, want %q", status, err, stderr.String(), want)
		}
		for on(t, r, nil, "wait", "running").status == 0 {
		}
		on(t, r, nil, "exec", "running", "--", "true").expectError(t, "is not running")
	})
}

// hostFolder is a folder on the host that godwit runs on.
func hostFolder(t *testing.T, r runner, name string) string {
	t.Helper()
	e, ok := r.(*emulated)
	if !ok {
		return t.TempDir()
	}
	dir := "/tmp/test-" + name
	if err := e.host.Client.Put(t.Context(), dir+"/.made", 0o600, strings.NewReader("")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestWaitFails boots guests that do not come up: nothing of them stays.
func TestWaitFails(t *testing.T) {
	t.Parallel()
	r, release := host(t)
	defer release()
	boot := []string{"boot", "--name", "never", "--memory", "256M", "--wait"}
	on(t, r, nil, append(boot, "--cmdline", "rdinit=/none init=/none root=")...).expectError(t, "panicked")
	on(t, r, nil, append(boot, "--wait-timeout", "1s")...).expectError(t, "was not up within 1s")
	on(t, r, nil, append(boot, "--kernel", "/no/such/kernel")...).expectError(t, "no such file")
	on(t, r, nil, append(boot, "--", "true")...).expectError(t, "godwit exec")
	on(t, r, nil, "exec", "never", "true").expectError(t, "is not running")
}

// TestKilled kills the process of a guest: its name is free at once.
func TestKilled(t *testing.T) {
	t.Parallel()
	r, release := host(t)
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	for range 2 {
		p, err := r.start(ctx, nil, io.Discard, io.Discard, "boot", "--name", "killed", "--memory", "256M")
		if err != nil {
			t.Fatal(err)
		}
		on(t, r, nil, "wait", "killed", "--timeout", "80s").expect(t, 0, "")
		if err := p.Signal(syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		if status, err := p.Wait(); status != 128+int(syscall.SIGKILL) && status != -1 || err != nil {
			t.Errorf("status %d, %v", status, err)
		}
		on(t, r, nil, "exec", "killed", "true").expectError(t, "is not running")
	}
}

// TestManyConnections has 200 vsock connections at once, opened from both sides,
// with checked data.
func TestManyConnections(t *testing.T) {
	t.Parallel()
	r := guestInBackground(t, "many")
	there := testProgram(t, r, "vsockpeer")
	godwit := "godwit"
	if r, ok := r.(*local); ok {
		godwit = r.binary
	}
	on(t, r, nil, "cp", there, "many:/tmp/vsockpeer").expect(t, 0, "")
	out, err := peer(t, r, there, "host", godwit, "many", "/run/godwit/many/vsock", "/tmp/vsockpeer")
	if err != nil || !strings.HasPrefix(out, "200 connections") {
		t.Fatalf("%v: %s", err, out)
	}
	t.Log(strings.TrimSpace(out))
}

// testProgram builds a program of these tests and puts it on the host that godwit
// runs on.
func testProgram(t *testing.T, r runner, name string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./"+name)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	e, ok := r.(*emulated)
	if !ok {
		return program
	}
	there := "/tmp/" + name
	if err := e.host.Put(t.Context(), program, there); err != nil {
		t.Fatal(err)
	}
	return there
}

// peer runs a program on the host that godwit runs on.
func peer(t *testing.T, r runner, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	e, ok := r.(*emulated)
	if !ok {
		c := exec.CommandContext(t.Context(), args[0], args[1:]...)
		c.Stdout, c.Stderr = &out, &out
		err := c.Run()
		return out.String(), err
	}
	status, err := e.host.Run(t.Context(), lab.Cmd{Args: args, Stdout: &out, Stderr: &out})
	if err == nil && status != 0 {
		err = fmt.Errorf("exit status %d", status)
	}
	return out.String(), err
}
