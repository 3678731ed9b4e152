package tap

import (
	"bytes"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// passed is an interface as another process gets it.
func passed(t *testing.T, from *Tap) *Tap {
	t.Helper()
	files, err := from.Files()
	if err != nil {
		t.Fatal(err)
	}
	to, err := FromFiles(files)
	for _, f := range files {
		_ = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// transmit has the host send a frame to whoever reads from the interface.
func transmit(t *testing.T, link string, frame []byte) {
	t.Helper()
	i, err := net.InterfaceByName(link)
	if err != nil {
		t.Fatal(err)
	}
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	if err := unix.Sendto(s, frame, 0, &unix.SockaddrLinklayer{Ifindex: i.Index}); err != nil {
		t.Fatal(err)
	}
}

// receives says whether a frame waits in a queue, among others of the host.
func receives(fd int, frame []byte) bool {
	p := make([]byte, 2048)
	for {
		n, err := unix.Read(fd, p)
		if err != nil {
			return false
		}
		if bytes.HasSuffix(p[:n], frame) {
			return true
		}
	}
}

// TestPassed: what came before the one process has ended is there for the other.
func TestPassed(t *testing.T) {
	newNamespace(t)
	from, err := Open(Config{Name: "vm7", MTU: 1400})
	if err != nil {
		t.Fatal(err)
	}
	frame := append(bytes.Repeat([]byte{0xff}, 12), bytes.Repeat([]byte{0x88, 0xb5}, 30)...)
	transmit(t, "vm7", frame)
	// One that does not come after all changes nothing.
	if err := passed(t, from).Close(); err != nil {
		t.Fatal(err)
	}
	to := passed(t, from)
	if flags, err := unix.FcntlInt(uintptr(from.fds[0]), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("it has become blocking: %#x, %v", flags, err)
	}
	if err := from.Close(); err != nil {
		t.Fatal(err)
	}
	if to.Name() != "vm7" || to.MTU() != 1400 {
		t.Errorf("interface %s, MTU %d", to.Name(), to.MTU())
	}
	if !receives(to.fds[0], frame) {
		t.Error("the frame is lost")
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := net.InterfaceByName("vm7"); err == nil {
		t.Error("the interface is still there")
	}
}

// TestPassedQueues: which queues are in use stays as it was.
func TestPassedQueues(t *testing.T) {
	newNamespace(t)
	from, err := Open(Config{Name: "vm7", Queues: 4})
	if err != nil {
		t.Fatal(err)
	}
	if err := from.SetPairs(2); err != nil {
		t.Fatal(err)
	}
	to := passed(t, from)
	if err := from.Close(); err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if len(to.fds) != 4 || to.attached != 2 {
		t.Errorf("%d of %d queues are in use, want 2 of 4", to.attached, len(to.fds))
	}
	for _, n := range []int{4, 1, 3} {
		if err := to.SetPairs(n); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPassedWrong(t *testing.T) {
	newNamespace(t)
	open := func(name string) *os.File {
		b, err := Open(Config{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		files, err := b.Files()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = files[0].Close() })
		return files[0]
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	one, other := open("vm7"), open("vm8")
	for want, files := range map[string][]*os.File{
		"no queues":                     nil,
		"no tap interface":              {null},
		"its queues are of vm7 and vm8": {one, other},
	} {
		if b, err := FromFiles(files); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, %v, want %q", b, err, want)
		}
	}
}
