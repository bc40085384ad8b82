//! What the tests hold the learning switch against: a data plane that is obviously right because it is
//! naive, and a learning switch that decides on every packet by itself, without flows.

use hyper_switch_controlplane::learning_switch::{Config, LearningSwitch};
use hyper_switch_controlplane::mac::{Mac, MacEntry, MacKey};
use hyper_switch_dataplane::api::{
    Action, Event, FieldValue, FlowId, FlowKey, FlowRecord, InstallError, Match, Nanos, PortId, PortInfo,
    Request, Upcall, UpcallId, UpcallReason, VLAN_PRESENT, Verdict, VlanMode,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

const C_TAG: u16 = 0x8100;

pub(crate) const BROADCAST: Mac = [0xff; 6];
pub(crate) const LLDP: Mac = [0x01, 0x80, 0xc2, 0, 0, 0x0e];

pub(crate) fn station(last: u8) -> Mac {
    [2, 0, 0, 0, 0, last]
}

pub(crate) fn packet(in_port: u16, vlan_tci: u16, eth_src: Mac, eth_dst: Mac) -> FlowKey {
    let vlan_tpid = if vlan_tci == 0 { 0 } else { C_TAG };
    FlowKey { in_port: in_port.into(), vlan_tpid, vlan_tci, eth_src, eth_dst, ..FlowKey::ZERO }
}

pub(crate) fn port_info(id: u16, vlan: VlanMode) -> PortInfo {
    PortInfo { id: PortId(id), name: format!("port{id}"), vlan }
}

/// Who gets a packet, and with which tag protocol and tag; in the order of the ports.
pub(crate) type Fate = BTreeSet<(PortId, u16, u16)>;

/// A data plane with one core, in which every request is visible at once.
pub(crate) struct DataPlane {
    pub(crate) ports: BTreeMap<PortId, VlanMode>,
    pub(crate) flows: BTreeMap<FlowId, FlowRecord>,
    pub(crate) capacity: usize,
    pub(crate) max_masks: usize,
    /// What the control plane has not been told yet.
    pub(crate) events: VecDeque<Event>,
    /// What became of packets, in the order of that.
    pub(crate) fates: Vec<(FlowKey, Fate)>,
    /// All requests so far.
    pub(crate) requests: Vec<Request>,
    /// Upcalls so far.
    pub(crate) upcalls: u32,
    waiting: HashMap<UpcallId, FlowKey>,
}

impl DataPlane {
    pub(crate) fn new() -> DataPlane {
        DataPlane {
            ports: BTreeMap::new(),
            flows: BTreeMap::new(),
            capacity: usize::MAX,
            max_masks: usize::MAX,
            events: VecDeque::new(),
            fates: Vec::new(),
            requests: Vec::new(),
            upcalls: 0,
            waiting: HashMap::new(),
        }
    }

    pub(crate) fn add_port(&mut self, id: u16, vlan: VlanMode) {
        self.ports.insert(PortId(id), vlan.clone());
        self.events.push_back(Event::PortAdded(port_info(id, vlan)));
    }

    pub(crate) fn remove_port(&mut self, id: u16) {
        self.ports.remove(&PortId(id));
        self.events.push_back(Event::PortRemoved(PortId(id)));
    }

    /// The flow for a packet; there is never more than one.
    pub(crate) fn look_up(&self, key: &FlowKey) -> Option<&FlowRecord> {
        self.flows.values().find(|flow| flow.spec.matches.covers(key))
    }

    pub(crate) fn receive(&mut self, now: Nanos, key: FlowKey) {
        if let Some(id) = self.look_up(&key).map(|flow| flow.spec.id) {
            let flow = self.flows.get_mut(&id).expect("it was just found");
            flow.packets += 1;
            flow.used = Some(now);
            self.fates.push((key, apply(&flow.spec.actions, &key)));
            return;
        }
        let id = UpcallId { port: key.port(), number: self.upcalls };
        self.upcalls += 1;
        self.waiting.insert(id, key);
        let (reason, header, frame_bytes) = (UpcallReason::Miss, Default::default(), 60);
        self.events.push_back(Event::Upcall(Upcall { id, reason, key, header, frame_bytes }));
    }

    pub(crate) fn request(&mut self, now: Nanos, request: Request) {
        self.requests.push(request.clone());
        match request {
            Request::Install(spec) => {
                let (id, matches) = (spec.id, spec.matches);
                match self.refusal(id, &matches) {
                    Some(error) => self.events.push_back(Event::InstallFailed(id, error)),
                    None => {
                        let record = FlowRecord { spec, packets: 0, bytes: 0, used: None, installed: now };
                        self.flows.insert(id, record);
                    }
                }
            }
            Request::Modify(id, actions) => {
                if let Some(flow) = self.flows.get_mut(&id) {
                    flow.spec.actions = actions;
                }
            }
            Request::Remove(id) => drop(self.flows.remove(&id)),
            Request::Resolve(id, verdict) => {
                let Some(key) = self.waiting.remove(&id) else { panic!("{id:?} does not wait") };
                match verdict {
                    Verdict::Retry => self.receive(now, key),
                    Verdict::Execute(actions) => self.fates.push((key, apply(&actions, &key))),
                    Verdict::Drop => self.fates.push((key, Fate::new())),
                }
            }
            Request::List => {
                let ports = self.ports.iter().map(|(id, vlan)| port_info(id.0, vlan.clone())).collect();
                self.events.push_back(Event::Ports(ports));
                self.events.push_back(Event::Flows(self.flows.values().cloned().collect()));
            }
            Request::Barrier(number) => self.events.push_back(Event::Barrier(number)),
        }
    }

    fn refusal(&self, id: FlowId, matches: &Match) -> Option<InstallError> {
        assert!(!self.flows.contains_key(&id), "{id:?} is in use");
        let flows = || self.flows.values().map(|flow| &flow.spec);
        for other in flows() {
            let words = matches.key.words().iter().zip(other.matches.key.words());
            let masks = matches.mask.words().iter().zip(other.matches.mask.words());
            let differs = words.zip(masks).any(|((a, b), (ma, mb))| (a ^ b) & ma & mb != 0);
            assert!(differs, "{matches:?} overlaps {other:?}");
        }
        let mut masks: Vec<_> = flows().map(|spec| spec.matches.mask).chain([matches.mask]).collect();
        masks.sort_by_key(|mask| *mask.words());
        masks.dedup();
        if self.flows.len() >= self.capacity {
            Some(InstallError::TableFull(self.capacity))
        } else if masks.len() > self.max_masks {
            Some(InstallError::TooManyMasks(self.max_masks))
        } else {
            None
        }
    }
}

/// What a flow's actions do with a packet.
pub(crate) fn apply(actions: &[Action], key: &FlowKey) -> Fate {
    let (mut tpid, mut tci) = (key.vlan_tpid, key.vlan_tci);
    let mut fate = Fate::new();
    for action in actions {
        match *action {
            Action::Output(port) => assert!(fate.insert((port, tpid, tci)), "sent to port {port} twice"),
            Action::PushVlan(protocol) => (tpid, tci) = (protocol, tci | VLAN_PRESENT),
            Action::PopVlan if tci != 0 => (tpid, tci) = (0, 0),
            Action::Set(FieldValue::VlanVid(vid)) if tci != 0 => tci = tci & !0x0fff | vid,
            other => panic!("{other:?} cannot be applied to {key:?}"),
        }
    }
    fate
}

/// A learning switch that asks its table for every packet.
#[derive(Default)]
pub(crate) struct Oracle {
    pub(crate) macs: BTreeMap<MacKey, (PortId, Nanos)>,
}

impl Oracle {
    /// An oracle that knows what the switch knows.
    pub(crate) fn knowing(macs: impl Iterator<Item = MacEntry>) -> Oracle {
        Oracle { macs: macs.map(|entry| (entry.key, (entry.port, entry.seen))).collect() }
    }

    /// The source of a packet if it is one to be learned.
    pub(crate) fn source(ports: &BTreeMap<PortId, VlanMode>, key: &FlowKey) -> Option<MacKey> {
        let vlan = Self::vlan(ports, key)?;
        let is_learned = key.eth_src[0] & 1 == 0 && key.eth_src != [0; 6] && key.eth_dst != LLDP;
        is_learned.then_some(MacKey { vlan, mac: key.eth_src })
    }

    pub(crate) fn learn(&mut self, now: Nanos, ports: &BTreeMap<PortId, VlanMode>, key: &FlowKey) {
        if let Some(source) = Self::source(ports, key) {
            self.macs.insert(source, (key.port(), now));
        }
    }

    pub(crate) fn decide(&self, ports: &BTreeMap<PortId, VlanMode>, key: &FlowKey) -> Fate {
        let Some(vlan) = Self::vlan(ports, key) else { return Fate::new() };
        if key.eth_dst == LLDP {
            return Fate::new();
        }
        let known = self.macs.get(&MacKey { vlan, mac: key.eth_dst }).map(|(port, _)| *port);
        let tagged = (key.vlan_tpid.max(C_TAG), key.vlan_tci & 0xe000 | VLAN_PRESENT | vlan);
        let mut fate = Fate::new();
        for (port, vlan_mode) in ports {
            let (tpid, tci) = match vlan_mode {
                VlanMode::Access(own) if *own == vlan => (0, 0),
                VlanMode::Trunk(list) if list.contains(&vlan) => tagged,
                VlanMode::Transparent if vlan == 0 => (key.vlan_tpid, key.vlan_tci),
                VlanMode::Transparent => tagged,
                VlanMode::Access(_) | VlanMode::Trunk(_) => continue,
            };
            if *port != key.port() && known.is_none_or(|known| known == *port) {
                fate.insert((*port, tpid, tci));
            }
        }
        fate
    }

    fn vlan(ports: &BTreeMap<PortId, VlanMode>, key: &FlowKey) -> Option<u16> {
        match (ports.get(&key.port())?, key.vlan_tci & 0x0fff) {
            (VlanMode::Transparent, vid) => Some(vid),
            (VlanMode::Access(vlan), 0) => Some(*vlan),
            (VlanMode::Trunk(list), vid) if list.contains(&vid) => Some(vid),
            (VlanMode::Access(_) | VlanMode::Trunk(_), _) => None,
        }
    }
}

/// A learning switch on a naive data plane, and the time.
pub(crate) struct World {
    pub(crate) now: Nanos,
    pub(crate) switch: LearningSwitch,
    pub(crate) plane: DataPlane,
}

impl World {
    pub(crate) fn new(config: Config) -> World {
        let mut world =
            World { now: Nanos(1_000), switch: LearningSwitch::new(config), plane: DataPlane::new() };
        world.advance(0);
        world
    }

    /// A world with transparent ports of these numbers.
    pub(crate) fn with_ports(config: Config, ports: &[u16]) -> World {
        let mut world = World::new(config);
        ports.iter().for_each(|port| world.plane.add_port(*port, VlanMode::Transparent));
        world.run();
        world
    }

    /// Hands events and requests to and fro until there are none.
    pub(crate) fn run(&mut self) {
        let (mut out, mut events) = (Vec::new(), 0);
        while let Some(event) = self.plane.events.pop_front() {
            events += 1;
            assert!(events < 10_000, "it goes round and round");
            self.switch.handle(self.now, event, &mut out);
            out.drain(..).for_each(|request| self.plane.request(self.now, request));
        }
    }

    /// Lets time pass, with a tick at each deadline on the way.
    pub(crate) fn advance(&mut self, by_s: u64) {
        let end = Nanos(self.now.0 + by_s * 1_000_000_000);
        let mut out = Vec::new();
        while let Some(deadline) = self.switch.next_deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            self.switch.tick(self.now, &mut out);
            out.drain(..).for_each(|request| self.plane.request(self.now, request));
            self.run();
        }
        self.now = end;
    }

    /// Sends packets at the same time, and says what became of them.
    pub(crate) fn send(&mut self, keys: &[FlowKey]) -> Vec<(FlowKey, Fate)> {
        self.plane.fates.clear();
        keys.iter().for_each(|key| self.plane.receive(self.now, *key));
        self.run();
        std::mem::take(&mut self.plane.fates)
    }

    pub(crate) fn macs(&self) -> BTreeMap<MacKey, PortId> {
        self.switch.macs().map(|entry| (entry.key, entry.port)).collect()
    }
}
