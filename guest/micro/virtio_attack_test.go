package micro

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio"
	vnet "github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/devices/virtio/rng"
	"github.com/godwit-vmm/godwit/devices/virtio/vsock"
)

// closeLater closes what New returned when the test is over.
func closeLater[D interface{ Close() error }](t *testing.T) func(D, error) D {
	return func(d D, err error) D {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
		return d
	}
}

// TestVirtioAttack attacks godwit's devices, and then sees whether they serve
// another driver.
func TestVirtioAttack(t *testing.T) {
	rounds := uint64(1000)
	if testing.Short() {
		rounds = 300
	}
	for _, seed := range []uint64{1, 2, 3} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			a := VirtioAttack{Seed: seed, Count: rounds, Memory: virtioRAM, Stop: AnyStop()}
			card, _ := newTap(t)
			path := filepath.Join(t.TempDir(), "v")
			listenAll(t, path)
			g := newVirtioGuest(t, program(t)(a.ELF()),
				closeLater[*rng.Device](t)(rng.New(rng.Config{})),
				godwitDisk(t, testDisk(t, 1<<20, 1)),
				closeLater[*vsock.Device](t)(vsock.New(vsock.Config{Path: path})),
				virtio.Device(closeLater[*vnet.Device](t)(vnet.New(vnet.Config{MAC: localEnd.MAC, Backend: card}))),
			)
			g.hostile = true
			r := g.run()
			if err := r.Err(); err != nil || r.Count != rounds {
				t.Errorf("%v after %d rounds of %d", err, r.Count, rounds)
			}
			b := Block{Driver: Driver{Stop: AnyStop()}, Access: Write, Size: 4096, Requests: 100, Depth: 8, Verify: true}
			g.enter(program(t)(b.ELF()))
			r = g.run()
			if err := r.Err(); err != nil {
				t.Fatalf("the disk after the attack: %v", err)
			}
			checkBlock(t, b, r)
		})
	}
}

// listenAll lets somebody answer at the ports that the attack connects to.
func listenAll(t *testing.T, path string) {
	t.Helper()
	for port := range attackPorts {
		l, err := net.Listen("unix", fmt.Sprintf("%s_%d", path, port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					_, _ = io.Copy(c, c) // until the attack ends it
				}()
			}
		}()
	}
}

// TestVirtioAttackUnderQEMU shows that the program harms the devices only.
func TestVirtioAttackUnderQEMU(t *testing.T) {
	a := VirtioAttack{Seed: 5, Count: 2000, Memory: qemuRAM, Stop: AnyStop()}
	for _, m := range machines {
		t.Run(m.name, func(t *testing.T) {
			devices := append(qemuDisk(testDisk(t, 1<<20, 1), ""), "-device", "virtio-rng-pci", "-device", "virtio-balloon-pci",
				"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net")
			r := m.run(t, program(t)(a.ELF()), devices...)
			if err := r.Err(); err != nil || r.Count != a.Count {
				t.Errorf("%v after %d rounds of %d", err, r.Count, a.Count)
			}
		})
	}
}

func TestVirtioAttackMistakes(t *testing.T) {
	for _, memory := range []uint64{0, attackMemory - 1, 9 << 30} {
		if _, err := (VirtioAttack{Memory: memory}).ELF(); err == nil || !strings.Contains(err.Error(), "attack in") {
			t.Errorf("%d bytes of memory: error %v", memory, err)
		}
	}
}

// TestVirtioAttackSize checks that the program is where its queues do not say
// that its pages may be discarded.
func TestVirtioAttackSize(t *testing.T) {
	p := program(t)(VirtioAttack{Memory: attackMemory}.ELF())
	f, err := elf.NewFile(bytes.NewReader(p))
	if err != nil {
		t.Fatal(err)
	}
	last := f.Progs[len(f.Progs)-1]
	if first, end := f.Progs[1].Paddr, last.Paddr+last.Filesz; first < 256*pageSize || end > 0x403*pageSize {
		t.Errorf("the program is at %#x to %#x", first, end)
	}
}
