package machine

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/memory"
)

// TestVsock checks that the socket device is on the bus, that its socket is
// there as long as the machine, and that a second machine cannot have it.
func TestVsock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vsock")
	c := Config{CPUs: 1, Memory: 32 << 20, Kernel: program(t)(micro.Spin()), NoRNG: true, Vsock: func() (string, error) { return path, nil }, VsockCID: 42}
	m, err := New(openKVM(t), c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var id [4]byte
	m.mmio.Read(uint64(memory.ECAMStart)+1<<15, id[:])
	if got := binary.LittleEndian.Uint32(id[:]); got != 0x1053_1af4 {
		t.Errorf("slot 1 has %#x, want a socket device", got)
	}
	if host, err := net.Dial("unix", path); err != nil {
		t.Error(err)
	} else {
		host.Close()
	}
	if other, err := New(openKVM(t), c); err == nil {
		t.Error("a second machine with the same socket")
		other.Close()
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket outlives the machine: %v", err)
	}
	c.VsockCID = 2
	if other, err := New(openKVM(t), c); err == nil {
		t.Error("a guest with the CID of the host")
		other.Close()
	}
}
