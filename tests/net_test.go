package tests

import (
	"bytes"
	"context"
	"strings"
	"testing"

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

// serve answers one HTTP request with a file, in the shell of the place where
// it runs: nothing more is needed to see that a connection carries data. fetch
// gets that file; nothing tells it when the server listens, so it tries.
const serve = `serve() {
	(printf 'HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n' $(wc -c < $1); cat $1) | netcat -l $2 $3 > /tmp/request
}
fetch() {
	for i in $(seq 1 100); do
		if wget -O $2 $1 2>/dev/null; then return 0; fi
		sleep 0.1
	done
	return 1
}
`

// TestUserNetwork has a guest with a network that needs no privileges: a server
// in it answers the host, it resolves names, and it reaches a server of the host.
func TestUserNetwork(t *testing.T) {
	t.Parallel()
	e := emulatedHost(t)
	leave(t, e, "user", "--net", "user,forward=tcp:127.0.0.1:8080:80")
	script(t, e, "cat > /tmp/serve.sh <<'E'\n"+serve+"E\ngodwit cp /tmp/serve.sh user:/tmp/serve.sh")
	got := script(t, e, `
godwit exec user -- sh -c '. /tmp/serve.sh; echo hello, host > /tmp/page; serve /tmp/page 0.0.0.0 80' &
. /tmp/serve.sh; fetch http://127.0.0.1:8080/ /tmp/page || exit 1
wait
cat /tmp/page
godwit exec user -- grep GET /tmp/request`)
	if want := "hello, host\nGET / HTTP/1.1\n"; got != want {
		t.Errorf("a server in the guest: %q, want %q", got, want)
	}
	got = script(t, e, `
. /tmp/serve.sh; echo hello, guest > /tmp/page; serve /tmp/page 127.0.0.1 9000 &
godwit exec user -- sh -c '. /tmp/serve.sh; fetch http://host.containers.internal:9000/ /tmp/page && cat /tmp/page'
wait`)
	if want := "hello, guest\n"; got != want {
		t.Errorf("a server of the host: %q, want %q", got, want)
	}
}

// TestBridge has two guests with a network card each on a bridge of the host:
// they reach each other by ping and TCP, both ways.
func TestBridge(t *testing.T) {
	t.Skip("hangs in about 1 of 5 runs on a busy machine, cause not found yet: the TCP transfer of the second direction does not end")
	t.Parallel()
	e := emulatedHost(t)
	script(t, e, "ip link add br0 type bridge && ip link set br0 up")
	t.Cleanup(func() { inLab(t, e, nil, "ip link del br0") })
	leave(t, e, "left", "--net", "tap,bridge=br0", "--cmdline", "godwit.ip=10.9.0.1/24")
	leave(t, e, "right", "--net", "tap,bridge=br0", "--cmdline", "godwit.ip=10.9.0.2/24")
	script(t, e, "cat > /tmp/serve.sh <<'E'\n"+serve+"E\nfor g in left right; do godwit cp /tmp/serve.sh $g:/tmp/serve.sh; done")
	for _, way := range []struct{ from, to, address string }{{"left", "right", "10.9.0.2"}, {"right", "left", "10.9.0.1"}} {
		got := script(t, e, strings.NewReplacer("FROM", way.from, "TO", way.to, "ADDRESS", way.address).Replace(`
godwit exec FROM -- ping -c 3 ADDRESS > /tmp/ping || exit 1
godwit exec TO -- sh -c 'dd if=/dev/urandom of=/tmp/data bs=64K count=16 2>/dev/null; shasum < /tmp/data'
godwit exec TO -- sh -c '. /tmp/serve.sh; serve /tmp/data 0.0.0.0 5000' &
godwit exec FROM -- sh -c '. /tmp/serve.sh; fetch http://ADDRESS:5000/ /tmp/got && shasum < /tmp/got'
wait`))
		sums := strings.Split(got, "\n")
		if len(sums) != 3 || sums[0] != sums[1] {
			t.Errorf("from %s to %s: %q", way.to, way.from, got)
		}
	}
}
