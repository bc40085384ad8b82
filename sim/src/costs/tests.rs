//! Tests of the table as a whole, by changing a complete one's text.

use super::*;

fn opteron() -> toml::Table {
    EMBEDDED[0].1.parse().unwrap()
}

fn load(table: &toml::Table) -> Result<CostTable, CostError> {
    CostTable::load(&table.to_string())
}

/// The row of this name in a table's text.
fn row<'a>(table: &'a mut toml::Table, name: &str) -> &'a mut toml::Table {
    let rows = table["cost"].as_array_mut().unwrap().iter_mut().map(|row| row.as_table_mut().unwrap());
    rows.into_iter().find(|row| row["name"].as_str() == Some(name)).unwrap()
}

/// Every table that the program carries is complete, has its own name, and no table is found by another.
#[test]
fn embedded_tables_are_complete() {
    for name in CostTable::embedded_names() {
        let table = CostTable::embedded(name).unwrap();
        assert_eq!(table.name(), name);
        assert!(!table.description().trim().is_empty());
        for row in table.rows() {
            assert_eq!(table.get(row.name), row.value);
        }
    }
    assert!(CostTable::embedded("sparc").is_none());
}

/// In every table that the program carries a copy is dearer the farther its bytes are, at any size.
#[test]
fn nearer_is_cheaper() {
    for name in CostTable::embedded_names() {
        let table = CostTable::embedded(name).unwrap();
        for bytes in [1, 64, 100, 1_500, 9_000, 65_536, 1 << 20] {
            let ns = Locality::ALL.map(|locality| table.copy(locality, bytes));
            assert!(ns.is_sorted() && ns[0] > 0.0, "{name}, {bytes} bytes: {ns:?}");
        }
    }
}

/// A row's order does not matter, and a table is read as it was written, with rows put in the place of others.
#[test]
fn tables_are_read_as_they_are_written() {
    let mut text = opteron();
    text["cost"].as_array_mut().unwrap().reverse();
    let mut table = load(&text).unwrap();
    assert_eq!(table.rows(), CostTable::embedded("opteron").unwrap().rows());

    let row = CostRow {
        name: Cost::Timer,
        value: 17.5,
        unit: Unit::Nanoseconds,
        kind: Kind::Measured,
        source: "a \"test\"\nof two lines".into(),
    };
    let copy = CopyRow { points: vec![(10, 20.0), (20, 50.0)], kind: Kind::Fitted, source: "a test".into() };
    table.set(row.clone()).unwrap();
    table.set_copy(Locality::Shared, copy.clone()).unwrap();
    table.rename("other".into(), "of a test".into());
    let again = CostTable::load(&table.to_string()).unwrap();
    assert_eq!((again.name(), again.description()), ("other", "of a test"));
    assert_eq!(again.rows(), table.rows());
    assert_eq!(again.rows()[Cost::Timer as usize], row);
    assert_eq!(again.get(Cost::Timer), 17.5);
    assert_eq!(again.copies().nth(1), Some((Locality::Shared, &copy)));
    assert_eq!(again.copy(Locality::Shared, 15), 35.0);
}

/// What is missing, comes twice, is no figure or has no source is refused by name; so is what a table does not have.
#[test]
fn incomplete_tables_are_refused() {
    // The first, the last and one between.
    for cost in [Cost::ALL[0], Cost::Timer, Cost::ALL[Cost::ALL.len() - 1]] {
        let mut table = opteron();
        let rows = table["cost"].as_array_mut().unwrap();
        rows.retain(|row| row["name"].as_str() != Some(cost.name()));
        assert_eq!(load(&table).unwrap_err(), CostError::Missing(cost));

        let mut table = opteron();
        let unit = if cost == Cost::ColdCopy { "ns" } else { "times" };
        row(&mut table, cost.name()).insert("unit".to_owned(), unit.into());
        assert_eq!(load(&table).unwrap_err(), CostError::Unit(cost));

        let mut table = opteron();
        let twice = toml::Value::Table(row(&mut table, cost.name()).clone());
        table["cost"].as_array_mut().unwrap().insert(0, twice);
        assert_eq!(load(&table).unwrap_err(), CostError::Twice(cost));

        for value in [-1.0, f64::INFINITY, f64::NEG_INFINITY] {
            let mut table = opteron();
            row(&mut table, cost.name())["value"] = value.into();
            assert_eq!(load(&table).unwrap_err(), CostError::Value { row: cost, value });
        }
        let mut table = opteron();
        row(&mut table, cost.name())["value"] = f64::NAN.into();
        assert!(matches!(load(&table).unwrap_err(), CostError::Value { row, .. } if row == cost));

        let mut table = opteron();
        row(&mut table, cost.name())["source"] = " ".into();
        assert_eq!(load(&table).unwrap_err(), CostError::Source(Row::Cost(cost)));
    }
    let shared = Row::Copy(Locality::Shared);
    for (field, value, error) in [
        ("source", "".into(), CostError::Source(shared)),
        ("points", toml::Value::Array(Vec::new()), CostError::Points(shared)),
    ] {
        let mut table = opteron();
        table["copy"]["shared"][field] = value;
        assert_eq!(load(&table).unwrap_err(), error);
    }
    for (field, value) in [("unit", "ms"), ("kind", "guessed"), ("name", "luck"), ("colour", "red")] {
        let mut table = opteron();
        row(&mut table, "timer").insert(field.into(), value.into());
        assert!(matches!(load(&table).unwrap_err(), CostError::Form(_)), "{field} = {value}");
    }
}

/// A row that is refused leaves the table as it was.
#[test]
fn refused_rows_change_nothing() {
    let mut table = CostTable::embedded("opteron").unwrap();
    let before = table.to_string();
    let timer = table.rows()[Cost::Timer as usize].clone();
    assert!(table.set(CostRow { value: -1.0, ..timer.clone() }).is_err());
    assert!(table.set(CostRow { source: String::new(), ..timer }).is_err());
    let (_, own) = table.copies().next().unwrap();
    let own = CopyRow { points: vec![(0, 1.0)], ..own.clone() };
    assert!(table.set_copy(Locality::Own, own).is_err());
    assert_eq!(table.to_string(), before);
}
