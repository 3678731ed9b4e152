package net

import (
	"encoding/binary"
	"fmt"

	"github.com/godwit-vmm/godwit/devices/virtio"
)

// Commands of the control queue (§5.1.6.5): class and command, and how many
// bytes go with it.
const (
	classMAC       = 1
	macAddrSet     = 1
	classAnnounce  = 3
	announceAck    = 0
	classMQ        = 4
	mqPairsSet     = 0
	classOffloads  = 5
	offloadsSet    = 0
	commandSize    = 2
	macSize        = 6
	pairsSize      = 2
	offloadsSize   = 8
	maxCommandData = 8

	ackOK  = 0 // VIRTIO_NET_OK
	ackErr = 1 // VIRTIO_NET_ERR
)

// control serves the control queue. A command that is wrong in itself is
// refused.
type control struct {
	device *Device
	driver *virtio.Driver
	queue  *virtio.Queue
	chain  virtio.Chain
	failed bool
}

func (c *control) start(driver *virtio.Driver, q *virtio.Queue, loop *virtio.Loop) error {
	c.driver, c.queue, c.failed = driver, q, false
	if q == nil {
		return nil
	}
	q.Kick()
	return loop.AddQueue(q, c.run)
}

func (c *control) run() {
	c.device.remind()
	for n := 0; !c.failed; n++ {
		if n == budget {
			c.queue.Kick() // to go on
			return
		}
		ok, err := c.queue.Pop(&c.chain)
		if err == nil && !ok {
			c.queue.Notify()
			if ok, err = c.queue.EnableKicks(); err == nil && !ok {
				return
			}
			continue
		}
		if err == nil {
			err = c.serve()
		}
		if err != nil {
			c.failed = true
			c.driver.Fail(err)
		}
	}
}

// serve obeys one command.
func (c *control) serve() error {
	if c.chain.WriteLen == 0 {
		return fmt.Errorf("control command without room for the answer: %w", virtio.ErrBroken)
	}
	answer := [1]byte{ackErr}
	if c.obey() {
		answer[0] = ackOK
	}
	c.chain.CopyIn(0, answer[:])
	c.queue.Push(c.chain.Head, 1)
	return nil
}

// obey does what a command says, and tells whether it could.
func (c *control) obey() bool {
	var command [commandSize + maxCommandData]byte
	n := c.chain.CopyOut(0, command[:])
	if n < commandSize {
		return false
	}
	data := command[commandSize:n]
	switch class, cmd := command[0], command[1]; {
	case class == classMAC && cmd == macAddrSet && c.driver.Has(FeatureControlMAC) && len(data) >= macSize:
		return c.device.setMAC(MAC(data[:macSize]))
	case class == classAnnounce && cmd == announceAck && c.driver.Has(FeatureAnnounce):
		return c.device.announced()
	case class == classMQ && cmd == mqPairsSet && c.driver.Has(FeatureMultiqueue) && len(data) >= pairsSize:
		return c.device.setPairs(int(binary.LittleEndian.Uint16(data)))
	case class == classOffloads && cmd == offloadsSet && c.driver.Has(FeatureGuestOffloads) && len(data) >= offloadsSize:
		return c.device.setOffloads(binary.LittleEndian.Uint64(data))
	}
	return false
}

// setMAC changes the address that the configuration space shows.
func (d *Device) setMAC(m MAC) bool {
	if m.check() != nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mac = m
	return true
}

// announced is called when the guest has made itself known.
func (d *Device) announced() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.announce = false
	return true
}

// remind asks again for an announcement that was asked for before the start. It
// is called on a loop, for Start must not call back into the transport.
func (d *Device) remind() {
	d.mu.Lock()
	due, driver := d.announceDue, d.driver
	d.announceDue = false
	d.mu.Unlock()
	if due {
		driver.ConfigChanged()
	}
}

// setPairs is called when the driver uses the first n pairs from now on.
func (d *Device) setPairs(n int) bool {
	if n < 1 || n > len(d.pairs) {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.config.Backend.SetPairs(n); err != nil {
		d.warnings.add(warnPairs, err)
		return false
	}
	d.active = n
	for _, p := range d.pairs[:n] {
		if p.receive.queue != nil {
			p.receive.queue.Kick() // there may be frames for it by now
		}
	}
	return true
}

// uses tells whether the driver uses a pair.
func (d *Device) uses(pair int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return pair < d.active
}

// setOffloads is called when the driver wants just these of the offloads that
// it has accepted.
func (d *Device) setOffloads(features uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if features&^(d.driver.Features&guestOffloads) != 0 {
		return false
	}
	before := d.offloads
	d.offloads = offloads{set: true, features: features}
	if err := d.applyOffloads(d.driver); err != nil {
		d.offloads = before
		d.warnings.add(warnOffloads, err)
		return false
	}
	return true
}
