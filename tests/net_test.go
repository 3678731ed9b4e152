package tests

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/internal/lab"
)

// emulatedHost waits for an emulated host that the test may change as it likes
// until its end.
func emulatedHost(t *testing.T) *emulated {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a stock kernel: not in -short")
	}
	r, release := host(t)
	t.Cleanup(release)
	e, ok := r.(*emulated)
	if !ok {
		t.Skip("changes the network of the host: in an emulated host only")
	}
	return e
}

// script runs a shell script in an emulated host and gives what it printed.
func script(t *testing.T, e *emulated, text string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*bootTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	status, err := e.host.Run(ctx, lab.Cmd{Args: []string{"sh", "-c", text}, Stdout: &stdout, Stderr: &stderr})
	if err != nil || status != 0 {
		t.Fatalf("%s: status %d, %v\nstdout:\n%s\nstderr:\n%s", text, status, err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// leave boots a guest in the background and powers it off at the end.
func leave(t *testing.T, e *emulated, name string, flags ...string) {
	t.Helper()
	args := append([]string{"boot", "--name", name, "--memory", "256M", "--wait"}, flags...)
	on(t, e, nil, args...).expect(t, 0, name+"\n")
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() { inLab(t, e, nil, "godwit exec "+name+" -- poweroff; true") })
}

// webpeer is the program of that name, where it lies on the host and in the guests.
const webpeer = "/tmp/webpeer"

// serve runs a web server on the host, or in a guest if on is not empty, until the
// test's end. It returns when the server listens, with the checksum of what it
// serves.
func serve(t *testing.T, e *emulated, on, address string) string {
	t.Helper()
	args := []string{webpeer, "serve", address}
	if on != "" {
		args = append([]string{"godwit", "exec", on, "--"}, args...)
	}
	out, stderr := newAwaiter("\n"), &bytes.Buffer{}
	p, err := e.host.Start(lab.Cmd{Args: args, Stdout: out, Stderr: stderr})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = p.Wait() // it is killed
	}()
	t.Cleanup(func() {
		_ = p.Kill()
		<-ended
	})
	select {
	case <-out.done:
	case <-ended:
		t.Fatalf("%v: %s", args, stderr.String())
	case <-time.After(bootTimeout):
		t.Fatalf("%v does not listen after %v", args, bootTimeout)
	}
	return out.text()
}

// get fetches from a web server, on the host or in a guest, and expects what has
// the given checksum.
func get(t *testing.T, e *emulated, on, url, want string) {
	t.Helper()
	command := webpeer + " get " + url
	if on != "" {
		command = "godwit exec " + on + " -- " + command
	}
	if got := script(t, e, command); got != want {
		t.Errorf("%s: checksum %q, want %q", command, got, want)
	}
}

// TestUserNetwork has a guest with a network that needs no privileges: a server
// in it answers the host, it resolves names, and it reaches a server of the host.
func TestUserNetwork(t *testing.T) {
	t.Parallel()
	e := emulatedHost(t)
	leave(t, e, "user", "--net", "user,forward=tcp:127.0.0.1:8080:80")
	on(t, e, nil, "cp", testProgram(t, e, "webpeer"), "user:"+webpeer).expect(t, 0, "")
	get(t, e, "", "http://127.0.0.1:8080/", serve(t, e, "user", ":80"))
	get(t, e, "user", "http://host.containers.internal:9000/", serve(t, e, "", "127.0.0.1:9000"))
}

// TestBridge has two guests with a network card each on a bridge of the host:
// they reach each other by ping and TCP, both ways.
func TestBridge(t *testing.T) {
	t.Parallel()
	e := emulatedHost(t)
	script(t, e, "ip link add br0 type bridge && ip link set br0 up")
	t.Cleanup(func() { inLab(t, e, nil, "ip link del br0") })
	program := testProgram(t, e, "webpeer")
	addresses := map[string]string{"left": "10.9.0.1", "right": "10.9.0.2"}
	for name, address := range addresses {
		leave(t, e, name, "--net", "tap,bridge=br0", "--cmdline", "godwit.ip="+address+"/24")
		on(t, e, nil, "cp", program, name+":"+webpeer).expect(t, 0, "")
	}
	for _, way := range []struct{ from, to string }{{"left", "right"}, {"right", "left"}} {
		script(t, e, "godwit exec "+way.from+" -- ping -c 3 "+addresses[way.to])
		get(t, e, way.from, "http://"+addresses[way.to]+":5000/", serve(t, e, way.to, ":5000"))
	}
}
